"""Progress for the service and metrics for MLflow, from rank 0."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from syncnorm.trainer.reporting import metric_spool as tracking
from syncnorm.trainer.reporting.reporter import Reporter
from syncnorm.trainer.training.module import TrainingModule

logger = logging.getLogger(__name__)


class ProgressReporter(Callback):
    """Reports progress to the service after every step, and the results of an epoch to MLflow.

    It computes the metrics of an epoch, so it comes before the callback that writes checkpoints.
    """

    def __init__(
        self, reporter: Reporter, spool: tracking.Spool, *, epochs: int | None, steps: int, global_batch: int
    ) -> None:
        self._reporter = reporter
        self._spool = spool
        self._epochs = epochs
        self._steps = steps
        self._global_batch = global_batch
        self._metrics: dict[str, float] = {}
        self._epoch_began = 0.0
        self._batches = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epoch_began = time.monotonic()  # Lightning starts no epoch where an attempt resumes in the middle of one

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epoch_began = time.monotonic()
        self._batches = 0
        assert isinstance(pl_module, TrainingModule)
        pl_module.val_metrics = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._batches += 1
        self._report(trainer, finished_epochs=trainer.current_epoch)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        rates = {tracking.LEARNING_RATE: trainer.optimizers[0].param_groups[0]["lr"]}
        if self._batches:  # empty if a job resumes from the very end of an epoch
            elapsed_s = max(time.monotonic() - self._epoch_began, 1e-9)
            rates[tracking.THROUGHPUT] = self._batches * self._global_batch / elapsed_s
        assert isinstance(pl_module, TrainingModule)
        self._metrics = {**rates, **pl_module.finish_train_epoch(), **pl_module.val_metrics}
        if trainer.is_global_zero:
            self._spool.append(self._metrics, trainer.global_step)
            of = f" of {self._epochs}" if self._epochs is not None else ""
            learned = _learned(self._metrics)
            logger.info("epoch %d%s, step %d: %s", trainer.current_epoch + 1, of, trainer.global_step, learned)
        self._report(trainer, finished_epochs=trainer.current_epoch + 1)

    def _report(self, trainer: Trainer, *, finished_epochs: int) -> None:
        if trainer.is_global_zero:
            self._reporter.progress(
                epoch=finished_epochs,
                epochs=self._epochs,
                step=trainer.global_step,
                steps=self._steps,
                metrics=self._metrics,
            )


def _learned(metrics: Mapping[str, float]) -> str:
    """The scores of an epoch and its throughput, for the job's logs."""
    learned = [f"{name} {value:.4g}" for name, value in metrics.items() if name.startswith(("train/", "val/"))]
    if (rate := metrics.get(tracking.THROUGHPUT)) is not None:
        learned.append(f"{rate:.3g} samples/s")
    return ", ".join(learned)
