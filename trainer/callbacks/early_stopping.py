"""Ends training when a validation score no longer improves."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from syncnorm.trainer.callbacks.epoch_metrics import EpochMetrics
from syncnorm.trainer.contract.spec import EarlyStopping
from syncnorm.trainer.training.late_hooks import LateCallback


class StopEarly(LateCallback):
    """Stops at the end of an epoch if `monitor` has had no new best for `patience` validations.

    The score is the same on every rank, so all of them stop together. Best and count are in the checkpoint.
    """

    def __init__(self, spec: EarlyStopping, metrics: EpochMetrics) -> None:
        self._spec = spec
        self._metrics = metrics
        self._best: float | None = None
        self._without_better = 0

    def after_train_epoch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        score = self._metrics.require("train.early_stopping.monitor", self._spec.monitor)
        self._without_better = 0 if self._is_better(score) else self._without_better + 1
        self._stop_if_due(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A job that was interrupted after its last epoch must not train on."""
        self._stop_if_due(trainer)

    def _stop_if_due(self, trainer: Trainer) -> None:
        if self._without_better >= self._spec.patience:
            trainer.should_stop = True

    def _is_better(self, score: float) -> bool:
        """NaN is never better; any other first score is."""
        if math.isnan(score):
            return False
        gain = math.inf if self._best is None else self._best - score
        if self._best is not None and self._spec.mode == "max":
            gain = -gain
        if not gain > self._spec.min_delta:
            return False
        self._best = score
        return True

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best, "without_better": self._without_better}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._best, self._without_better = state_dict["best"], state_dict["without_better"]
