"""The Trainer of a rank: Lightning's, with our strategy, loaders in shares, and none of its own side work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger

from syncnorm.trainer.contract.spec import JobSpec
from syncnorm.trainer.data.loader import Loader
from syncnorm.trainer.data.user.shared_loader import Workers, share
from syncnorm.trainer.ranks.rank_context import RankContext
from syncnorm.trainer.training.conversion import ConvertedNorms
from syncnorm.trainer.training.lightning_overhead import (
    NoProfiler,
    exchange_no_signals,
    ignore_advice,
    skip_empty_hooks,
)
from syncnorm.trainer.training.strategy import ReplicaStrategy

LOG_EVERY = 50
"""Steps between two values of a metric that is logged by step, as Lightning has it."""


class JobTrainer(Trainer):
    """Lightning's, for a process with one device of the many that a job has."""

    @property
    def num_devices(self) -> int:
        """The workers of the job, as modules expect that scale a learning rate by it, or exchange tensors if it is more
        than 1. Lightning itself counts those of the process."""
        return self.world_size


def lightning_trainer(
    spec: JobSpec,
    context: RankContext,
    callbacks: Sequence[Callback],
    norms: ConvertedNorms,
    *,
    io: CheckpointIO | None = None,
    logger: Logger | None = None,
    root: Path | None = None,
    precision: Literal["32-true", "64-true"] | None = None,
    shares: int | None = None,
) -> Trainer:
    """The Trainer of this rank. root: where callbacks of a user's module write their files. precision: in place of
    that of the spec. shares: workers that a user's loader is shared out over, in place of those of `context`."""
    train, on_gpu, world_size = spec.train, context.device.type == "cuda", shares or context.world_size
    workers = Workers(
        rank=context.rank,
        world_size=world_size,
        seed=spec.seed,
        last_batch=spec.data.last_batch or "pad",
        batch_size=spec.data.batch_size,
        of_job=spec.resources.workers,
        joined=train.joined_micro_batches,
    )

    def share_out(loader: object, training: bool) -> object:
        if isinstance(loader, Loader):
            return loader
        return share(
            loader, workers, training=training, epoch=lambda: _epoch(trainer), taken=lambda: _taken_batches(trainer)
        )

    trainer = JobTrainer(
        accelerator="gpu" if on_gpu else "cpu",
        devices="auto" if on_gpu else 1,
        strategy=ReplicaStrategy(
            context.device, share_out, steps=train.steps, find_unused=train.ddp.find_unused_parameters
        ),
        plugins=[context.environment, norms, *([io] if io else [])],
        precision=precision or train.precision,
        max_epochs=train.epochs if train.epochs is not None else -1,
        # Not max_steps: with it, Lightning repeats the epoch at whose end a checkpoint was written (lightning 2.6.6).
        max_steps=-1,
        accumulate_grad_batches=train.batches_per_step,
        gradient_clip_val=train.clip_grad_norm,
        callbacks=list(callbacks),
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        logger=logger or False,
        log_every_n_steps=min(LOG_EVERY, train.steps or LOG_EVERY),
        default_root_dir=root,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        profiler=NoProfiler(),
    )
    skip_empty_hooks(callbacks)
    exchange_no_signals(trainer)
    ignore_advice(is_partly_frozen=bool(spec.model.freeze))
    return trainer


def _taken_batches(trainer: Trainer) -> int:
    """Batches of this epoch that training has begun with."""
    taken: int = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    return taken


def _epoch(trainer: Trainer) -> int:
    """The epoch that samplers are told, which is also right where an attempt resumes from the end of one."""
    epoch: int = trainer.fit_loop.epoch_progress.current.processed  # type: ignore[attr-defined]
    return epoch
