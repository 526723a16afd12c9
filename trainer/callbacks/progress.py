"""Progress for the service and metrics for MLflow, from rank 0."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

from lightning.pytorch import LightningModule, Trainer

from syncnorm.trainer.callbacks.epoch_metrics import EpochMetrics
from syncnorm.trainer.callbacks.max_steps import planned_steps
from syncnorm.trainer.callbacks.sync_share import SyncShare
from syncnorm.trainer.reporting import metric_spool as tracking
from syncnorm.trainer.reporting.reporter import Reporter
from syncnorm.trainer.training.late_hooks import LateCallback
from syncnorm.trainer.training.parameters.groups import base_rate

logger = logging.getLogger(__name__)


class ProgressReporter(LateCallback):
    """Reports progress to the service after every step, and the results of an epoch to MLflow.

    steps: of the whole job; None: taken from the trainer once it knows its loader. Comes after `metrics` and `sync`,
    which it reports, and before the callback that writes checkpoints.
    """

    def __init__(
        self,
        reporter: Reporter,
        spool: tracking.Spool,
        metrics: EpochMetrics,
        sync: SyncShare,
        *,
        epochs: int | None,
        steps: int | None,
    ) -> None:
        self._reporter = reporter
        self._spool = spool
        self._learned = metrics
        self._sync = sync
        self._epochs = epochs
        self._steps = steps
        self._metrics: dict[str, float] = {}
        self._epoch_began = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epoch_began = time.monotonic()  # Lightning starts no epoch where an attempt resumes in the middle of one
        self._steps = self._steps or planned_steps(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epoch_began = time.monotonic()

    def after_train_batch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._report(trainer, finished_epochs=trainer.current_epoch)

    def after_train_epoch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        rates = dict(self._sync.latest)
        if trainer.optimizers:
            rates[tracking.LEARNING_RATE] = base_rate(trainer.optimizers[0].param_groups[0])
        if self._learned.samples:  # none if a job resumes from the very end of an epoch
            elapsed_s = max(time.monotonic() - self._epoch_began, 1e-9)
            rates[tracking.THROUGHPUT] = self._learned.samples * trainer.world_size / elapsed_s
        self._metrics = {**rates, **self._learned.latest}
        if trainer.is_global_zero:
            by_logger = trainer._logger_connector._logged_metrics  # it has written those of the module already
            self._spool.append(
                {name: value for name, value in self._metrics.items() if name not in by_logger}, trainer.global_step
            )
            of = f" of {self._epochs}" if self._epochs is not None else ""
            learned = _learned(self._learned.latest, rates.get(tracking.THROUGHPUT))
            logger.info("epoch %d%s, step %d: %s", trainer.current_epoch + 1, of, trainer.global_step, learned)
        self._report(trainer, finished_epochs=trainer.current_epoch + 1)

    def add(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """Report metrics that are found once training is over."""
        self._metrics = {**self._metrics, **metrics}
        self._report(trainer, finished_epochs=trainer.current_epoch)

    def _report(self, trainer: Trainer, *, finished_epochs: int) -> None:
        if trainer.is_global_zero:
            self._reporter.progress(
                epoch=finished_epochs,
                epochs=self._epochs,
                step=trainer.global_step,
                steps=self._steps,
                metrics=self._metrics,
            )


def _learned(scores: Mapping[str, float], throughput: float | None) -> str:
    """The scores of an epoch and its throughput, for the job's logs."""
    learned = [f"{name} {value:.4g}" for name, value in scores.items()]
    if throughput is not None:
        learned.append(f"{throughput:.3g} samples/s")
    return ", ".join(learned)
