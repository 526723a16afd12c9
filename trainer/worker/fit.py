"""One call of Lightning's fit on one rank: strategy, callbacks, loaders, resume."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import nn

from syncnorm import norm
from syncnorm.trainer.callbacks.adaptive_clipping import AdaptiveClipping
from syncnorm.trainer.callbacks.before_first_step import BeforeFirstStep
from syncnorm.trainer.callbacks.checkpoint import CheckpointWriter, VerifiedCheckpointIO
from syncnorm.trainer.callbacks.early_stopping import StopEarly
from syncnorm.trainer.callbacks.epoch_metrics import EpochMetrics
from syncnorm.trainer.callbacks.frozen_parameters import FrozenParameters
from syncnorm.trainer.callbacks.max_steps import EndAtStep
from syncnorm.trainer.callbacks.non_finite_gradients import NonFiniteGuard
from syncnorm.trainer.callbacks.non_finite_statistics import StatisticsShield
from syncnorm.trainer.callbacks.progress import ProgressReporter
from syncnorm.trainer.callbacks.statistics import StatisticsRecorder
from syncnorm.trainer.callbacks.statistics_alerts import StatisticsAlarm
from syncnorm.trainer.callbacks.stop_on_request import StopOnRequest
from syncnorm.trainer.callbacks.sync_share import EVERY_BATCH_WITH_GRAPH, SyncShare
from syncnorm.trainer.contract.protocol import Launch, StopRequest
from syncnorm.trainer.contract.spec import JobSpec
from syncnorm.trainer.data.user.whole_pass import whole_pass
from syncnorm.trainer.debugging.profiling import Profiling
from syncnorm.trainer.diagnostics import Diagnostics
from syncnorm.trainer.errors import StorageError
from syncnorm.trainer.models.activation_memory import keep_memory, save_memory
from syncnorm.trainer.ranks.metric_lists import lists_of_any_length
from syncnorm.trainer.ranks.rank_context import RankContext
from syncnorm.trainer.ranks.stop_agreement import StopAgreement
from syncnorm.trainer.reporting.metric_spool import Spool
from syncnorm.trainer.reporting.partition_detector import PartitionDetector, reaches_ray_head
from syncnorm.trainer.reporting.reporter import Reporter
from syncnorm.trainer.reporting.run_logger.assembly import run_logger_of
from syncnorm.trainer.reporting.telemetry.run_facts import RunFacts
from syncnorm.trainer.reporting.telemetry.system_metrics import system_metrics
from syncnorm.trainer.storage.attempt_layout import AttemptFolders
from syncnorm.trainer.training.averaging.averaged_weights import AveragedWeights
from syncnorm.trainer.training.batch_size import count_of
from syncnorm.trainer.training.conversion import ConvertedNorms
from syncnorm.trainer.training.evaluation import OwnStatistics
from syncnorm.trainer.training.graphs.graphed_steps import GraphedSteps
from syncnorm.trainer.training.graphs.step_graph import cuda_graph_of
from syncnorm.trainer.training.late_hooks import LateCallback, call_late
from syncnorm.trainer.training.task_module import network_of
from syncnorm.trainer.worker.lightning_trainer import lightning_trainer
from syncnorm.trainer.worker.module_and_data import Assembly
from syncnorm.trainer.worker.own_test import run_test
from syncnorm.trainer.worker.recomputed_statistics import RecomputedStatistics

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FitResult:
    """Where training ended, with the metrics of the last epoch."""

    step: int
    metrics: dict[str, float]
    checkpoint: str | None
    held_out: Iterable[Any] = ()
    """Batches of validation, or of training where there is none."""
    training: Iterable[Any] = ()
    """Those of training."""
    average: Mapping[str, Any] | None = None
    """What is known of the average, whose weights the module has now; None: it has those of the last step."""
    test: Callable[[], dict[str, float]] = dict
    """Runs the user's test with the weights that the module has then; the metrics. Entered by every rank."""


def compile_in_place(network: nn.Module) -> None:
    """Run calls of `network` compiled, without changing names or classes.

    `nn.Module.compile` would compile nothing if the outermost module is one of torch's own, for example nn.Sequential:
    Dynamo skips frames in torch.nn unless a frame outside calls them (torch 2.13).
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        return network._call_impl(*args, **kwargs)

    network._compiled_call_impl = torch.compile(call)


Prepare = Callable[[Trainer, LightningModule, ConvertedNorms], None]


def fit(
    assembly: Assembly,
    launch: Launch,
    folders: AttemptFolders,
    reporter: Reporter,
    context: RankContext,
    prepare: Prepare = lambda *_: None,
    load: Callable[[nn.Module], None] = lambda _: None,
    facts: RunFacts | None = None,
    profiling: Profiling | None = None,
) -> FitResult:
    """Train to the end. Entered by every rank. prepare: called once everything is ready for the first step. load: as
    in ConvertedNorms. facts: of the run. profiling: answers requests for a profile.

    Raises: StopRequested after a checkpoint, on every rank at the same step; SupersededError.
    """
    spec = launch.spec
    metrics = EpochMetrics(count_of(spec.data.count))
    checkpoints = _checkpoint_writer(spec, folders, reporter, metrics)
    resume_from = str(folders.mirror.local(launch.resume_from)) if launch.resume_from else None
    norms = ConvertedNorms(spec, lambda: norm.create_group(spec.norm.group), load)

    def ready(trainer: Trainer, module: LightningModule) -> None:
        prepare(trainer, module, norms)
        if spec.train.activation_memory == "lean":
            save_memory(network_of(module))
        if spec.train.compile:
            compile_in_place(network_of(module))

    spool = Spool(folders.spool)
    try:
        usage = system_metrics(context, spec.resources.cpus_per_worker, spool)
        with _spool(folders, context, spool), checkpoints.publication, usage:
            every = EVERY_BATCH_WITH_GRAPH if spec.train.graph else None
            sync = SyncShare(of_all_ranks=spec.norm.group == "world", every=every)
            early = _early(launch, folders, spool, facts or RunFacts(), reporter, sync, assembly)
            averages = _averages(assembly, spec)
            progress = ProgressReporter(reporter, spool, metrics, sync, epochs=spec.train.epochs, steps=assembly.steps)
            profilers = [profiling] if profiling else []
            graphs = [GraphedSteps(reporter, cuda_graph_of)] if spec.train.graph else []
            late = [*averages, metrics, progress, *_stopping(launch, reporter, metrics, checkpoints)]
            trainer = lightning_trainer(
                spec,
                context,
                [BeforeFirstStep(ready, spec.seed), FrozenParameters(norms), *graphs, *profilers, *early, *late],
                norms,
                io=_checkpoint_io(launch, folders, context.world_size),
                # The metrics of a built-in task go to the spool themselves.
                logger=run_logger_of(launch, folders, spool, lambda: trainer.global_step)
                if assembly.task_data is None
                else None,
                root=folders.root / "lightning",
            )
            call_late(trainer, [*profilers, *late])
            with _own_error(), lists_of_any_length():
                trainer.fit(assembly.module, datamodule=assembly.datamodule, ckpt_path=resume_from)
    finally:
        network_of(assembly.module)._compiled_call_impl = None  # export needs the network as it is written
        keep_memory(network_of(assembly.module))
    average = next((each.leave_in_place(assembly.module) for each in averages), None)
    held_out, training = batches_of(trainer)
    test = partial(_test, trainer, assembly, progress, spool, partial(_spool, folders, context, spool))
    return FitResult(trainer.global_step, metrics.latest, checkpoints.newest, held_out, training, average, test)


def _test(
    trainer: Trainer,
    assembly: Assembly,
    progress: ProgressReporter,
    spool: Spool,
    recorded: Callable[[], AbstractContextManager[None]],
) -> dict[str, float]:
    """The user's test. Its metrics are recorded and reported."""
    with recorded():
        found = run_test(trainer, assembly.module, assembly.datamodule, spool)
    progress.add(trainer, found)
    return found


def _checkpoint_io(launch: Launch, folders: AttemptFolders, world_size: int) -> VerifiedCheckpointIO:
    return VerifiedCheckpointIO(
        folders.checkpoints,
        world_size=world_size,
        fence=launch.fence,
        mirror=folders.mirror,
        has_own_code=launch.spec.has_own_code,
    )


def _checkpoint_writer(
    spec: JobSpec, folders: AttemptFolders, reporter: Reporter, metrics: EpochMetrics
) -> CheckpointWriter:
    return CheckpointWriter(
        folders,
        every=spec.train.checkpoint_every,
        keep=spec.train.keep_checkpoints,
        keep_best=spec.train.keep_best,
        reporter=reporter,
        metrics=metrics,
    )


@contextmanager
def _own_error() -> Iterator[None]:
    """Let a loader that can't begin be the error, instead of what Lightning's teardown then stumbles over (2.6.6)."""
    try:
        yield
    except RuntimeError as error:
        if "iter(combined_loader)" in str(error) and error.__context__ is not None:
            raise error.__context__ from None
        raise


def batches_of(trainer: Trainer) -> tuple[Iterable[Any], Iterable[Any]]:
    """Held-out batches, and those of a whole epoch of training; of several loaders the first. Entered by every rank."""
    # With nothing left to train, Lightning has not asked for them.
    if trainer.val_dataloaders is None and trainer.enable_validation:
        trainer.fit_loop.epoch_loop.val_loop.setup_data()
    val, training = (
        loaders[0] if loaders else () for loaders in map(_loaders, (trainer.val_dataloaders, trainer.train_dataloader))
    )
    whole = whole_pass(training)
    return val or training, training if whole is None else whole


def _loaders(given: Any) -> list[Any]:
    return [] if given is None else list(CombinedLoader(given).flattened)


@contextmanager
def _spool(folders: AttemptFolders, context: RankContext, spool: Spool) -> Iterator[None]:
    """Within the block, metrics are recorded; at its end they are on the storage, whatever happens, if that accepts
    files."""
    try:
        yield
    finally:
        spool.close()
        try:
            if context.rank == 0:
                folders.mirror.publish(folders.spool)
        except StorageError as error:
            logger.warning("could not store the metrics since the last checkpoint: %s", error)


def _early(
    launch: Launch,
    folders: AttemptFolders,
    spool: Spool,
    facts: RunFacts,
    reporter: Reporter,
    sync: SyncShare,
    assembly: Assembly,
) -> list[Callback]:
    """Callbacks around the step itself, in the order of their calls."""
    spec, steps = launch.spec, assembly.steps
    alarm = StatisticsAlarm(reporter)
    callbacks: list[Callback] = [] if steps is None else [EndAtStep(steps)]
    callbacks += [
        sync,
        StatisticsShield(alarm),
        StatisticsRecorder(folders.artifacts, spool, facts, alarm, every=spec.statistics.every),
    ]
    if spec.diagnostics:
        # After the recorder, which must not mistake a probe's forward passes for those of training.
        callbacks.append(Diagnostics(spec.diagnostics, folders.artifacts, spool, steps=steps))
    if spec.train.precision != "16-mixed":
        callbacks.append(NonFiniteGuard(reporter, spool))
    if spec.train.clip_adaptive is not None:
        callbacks.append(AdaptiveClipping(spec.train.clip_adaptive))
    if assembly.task_data is None:
        callbacks.append(OwnStatistics(lambda: norm.create_group(1)))
    return callbacks


def _averages(assembly: Assembly, spec: JobSpec) -> list[AveragedWeights]:
    if spec.train.average is None:
        return []
    statistics = RecomputedStatistics(assembly, spec.statistics.population, spec.seed)
    return [
        AveragedWeights(
            spec.train,
            recompute=lambda trainer: statistics.recompute(_loaders(trainer.train_dataloader)),
            check=lambda trainer: statistics.require_possible(_loaders(trainer.train_dataloader)),
        )
    ]


def _stopping(
    launch: Launch, reporter: Reporter, metrics: EpochMetrics, checkpoints: CheckpointWriter
) -> list[LateCallback]:
    """Callbacks that follow all hooks of the module, in the order of their calls: those with state that an epoch's end
    changes come before the checkpoint."""
    spec = launch.spec
    partition = PartitionDetector(reporter.silent_s, reaches_ray_head)

    def requested() -> StopRequest | None:
        return reporter.stop_request or ("preempt" if partition.is_partitioned() else None)

    agreement = StopAgreement(requested, lambda: reporter.superseded, timeout_s=spec.limits.collective_timeout_s)
    stopping = [StopEarly(spec.train.early_stopping, metrics)] if spec.train.early_stopping else []
    return [*stopping, checkpoints, StopOnRequest(agreement, checkpoints)]
