"""One call of Lightning's fit on one rank: strategy, callbacks, loaders, resume."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from torch import nn

from syncnorm.trainer.callbacks.checkpoint import CheckpointWriter, VerifiedCheckpointIO
from syncnorm.trainer.callbacks.early_stopping import StopEarly
from syncnorm.trainer.callbacks.max_steps import EndAtStep
from syncnorm.trainer.callbacks.non_finite_gradients import NonFiniteGuard
from syncnorm.trainer.callbacks.non_finite_statistics import StatisticsShield
from syncnorm.trainer.callbacks.progress import ProgressReporter
from syncnorm.trainer.callbacks.statistics import StatisticsRecorder
from syncnorm.trainer.callbacks.statistics_alerts import StatisticsAlarm
from syncnorm.trainer.callbacks.stop_on_request import StopOnRequest
from syncnorm.trainer.callbacks.sync_share import SyncShare
from syncnorm.trainer.contract.protocol import Launch, StopRequest
from syncnorm.trainer.contract.spec import JobSpec, TrainSpec
from syncnorm.trainer.data import Data
from syncnorm.trainer.data.loader import Loader, train_loader, val_loader
from syncnorm.trainer.diagnostics import Diagnostics
from syncnorm.trainer.errors import StorageError
from syncnorm.trainer.ranks.rank_context import RankContext
from syncnorm.trainer.ranks.stop_agreement import StopAgreement
from syncnorm.trainer.reporting.metric_spool import Spool
from syncnorm.trainer.reporting.partition_detector import PartitionDetector, reaches_ray_head
from syncnorm.trainer.reporting.reporter import Reporter
from syncnorm.trainer.storage.attempt_layout import AttemptFolders
from syncnorm.trainer.storage.sync import Mirror
from syncnorm.trainer.training.lightning_overhead import NoProfiler, exchange_no_signals
from syncnorm.trainer.training.module import TrainingModule

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FitResult:
    """Where training ended, with the metrics of the last epoch."""

    step: int
    metrics: dict[str, float]
    checkpoint: str | None


@dataclass(frozen=True)
class Loaders:
    """A rank's part of the training and validation batches."""

    train: Loader
    val: Loader

    @classmethod
    def build(cls, data: Data, spec: JobSpec, rank: int, world_size: int) -> Loaders:
        # The global batch is that of resources.workers, also while an elastic job runs on fewer.
        global_batch = spec.data.batch_size * spec.resources.workers
        on_gpu = spec.resources.gpus_per_worker > 0
        train = train_loader(
            data,
            global_batch=global_batch,
            rank=rank,
            world_size=world_size,
            seed=spec.seed,
            last_batch=spec.data.last_batch,
            pin_memory=on_gpu,
        )
        val = val_loader(data, global_batch=global_batch, rank=rank, world_size=world_size, pin_memory=on_gpu)
        return cls(train, val)


def total_steps(train: TrainSpec, batches_an_epoch: int) -> int:
    """Optimizer steps of the whole job; a last, incomplete accumulation of an epoch is a step too."""
    if train.steps is not None:
        return train.steps
    assert train.epochs is not None
    return math.ceil(batches_an_epoch / train.accumulate) * train.epochs


def compile_in_place(network: nn.Module) -> None:
    """Run calls of `network` compiled, without changing names or classes.

    `nn.Module.compile` would compile nothing if the outermost module is one of torch's own, for example nn.Sequential:
    Dynamo skips frames in torch.nn unless a frame outside calls them (torch 2.13).
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        return network._call_impl(*args, **kwargs)

    network._compiled_call_impl = torch.compile(call)


def fit(
    module: TrainingModule,
    loaders: Loaders,
    launch: Launch,
    folders: AttemptFolders,
    reporter: Reporter,
    context: RankContext,
    steps: int,
) -> FitResult:
    """Train to the end. Entered by every rank.

    Raises: StopRequested after a checkpoint, on every rank at the same step; SupersededError.
    """
    train = launch.spec.train
    checkpoints = CheckpointWriter(
        folders,
        every=train.checkpoint_every,
        keep=train.keep_checkpoints,
        keep_best=train.keep_best,
        reporter=reporter,
    )
    resume_from = str(folders.mirror.local(launch.resume_from)) if launch.resume_from else None
    if train.compile:
        compile_in_place(module.network)
    try:
        with _spool(folders, context) as spool, checkpoints.publication:
            callbacks = _callbacks(launch.spec, folders, spool, reporter, checkpoints, steps)
            trainer = _trainer(launch, callbacks, context, folders.mirror)
            exchange_no_signals(trainer)
            trainer.fit(module, loaders.train, loaders.val, ckpt_path=resume_from)
    finally:
        module.network._compiled_call_impl = None  # export needs the network as it is written
    return FitResult(trainer.global_step, {**module.train_metrics, **module.val_metrics}, checkpoints.newest)


@contextmanager
def _spool(folders: AttemptFolders, context: RankContext) -> Iterator[Spool]:
    """Within the block, metrics are recorded; at its end they are on the storage, whatever happens, if that accepts
    files."""
    spool = Spool(folders.spool)
    try:
        yield spool
    finally:
        spool.close()
        try:
            if context.rank == 0:
                folders.mirror.publish(folders.spool)
        except StorageError as error:
            logger.warning("could not store the metrics since the last checkpoint: %s", error)


def _callbacks(
    spec: JobSpec,
    folders: AttemptFolders,
    spool: Spool,
    reporter: Reporter,
    checkpoints: CheckpointWriter,
    steps: int,
) -> list[Callback]:
    """The callbacks in the order of their calls; those with state that an epoch's end changes come before the
    checkpoint."""
    partition = PartitionDetector(reporter.silent_s, reaches_ray_head)

    def requested() -> StopRequest | None:
        return reporter.stop_request or ("preempt" if partition.is_partitioned() else None)

    timeout_s = spec.limits.collective_timeout_s
    agreement = StopAgreement(requested, lambda: reporter.superseded, timeout_s=timeout_s)
    alarm = StatisticsAlarm(reporter)
    callbacks: list[Callback] = [
        EndAtStep(steps),
        SyncShare(spool),
        StatisticsShield(alarm),
        StatisticsRecorder(folders.artifacts, spool, alarm, every=spec.statistics.every),
        ProgressReporter(
            reporter,
            spool,
            epochs=spec.train.epochs,
            steps=steps,
            global_batch=spec.data.batch_size * spec.resources.workers,
        ),
    ]
    if spec.diagnostics:
        # After the recorder, which must not mistake a probe's forward passes for those of training.
        callbacks.append(Diagnostics(spec.diagnostics, folders.artifacts, spool, steps=steps))
    if spec.train.precision != "16-mixed":
        callbacks.append(NonFiniteGuard(reporter, spool))
    if spec.train.early_stopping:
        callbacks.append(StopEarly(spec.train.early_stopping))
    return [*callbacks, checkpoints, StopOnRequest(agreement, checkpoints)]


def _trainer(launch: Launch, callbacks: list[Callback], context: RankContext, mirror: Mirror) -> Trainer:
    train, res = launch.spec.train, launch.spec.resources
    return Trainer(
        accelerator="gpu" if res.gpus_per_worker else "cpu",
        devices=1 if not res.gpus_per_worker else "auto",
        # Buffers are kept equal by what they are computed from; sending rank 0's would hide a difference.
        strategy=context.strategy(broadcast_buffers=False),
        plugins=[
            context.environment,
            VerifiedCheckpointIO(world_size=context.world_size, fence=launch.fence, mirror=mirror),
        ],
        precision=train.precision,
        max_epochs=train.epochs if train.epochs is not None else -1,
        # Not max_steps: with it, Lightning repeats the epoch at whose end a checkpoint was written (lightning 2.6.6).
        max_steps=-1,
        accumulate_grad_batches=train.accumulate,
        gradient_clip_val=train.clip_grad_norm,
        callbacks=callbacks,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        profiler=NoProfiler(),
    )
