"""Ends training after a number of optimizer steps."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


def ends_epoch(trainer: Trainer) -> bool:
    """Whether this batch is the last of its epoch, because the data or the job ends with it."""
    return trainer.is_last_batch or trainer.should_stop


def planned_steps(trainer: Trainer) -> int | None:
    """Optimizer steps of the whole job; None where its loader or its module does not tell."""
    batches, epochs = trainer.num_training_batches, trainer.max_epochs
    if epochs is None or epochs < 0 or math.isinf(batches) or not trainer.lightning_module.automatic_optimization:
        return None
    return math.ceil(batches / trainer.accumulate_grad_batches) * epochs


class EndAtStep(Callback):
    """Ends the epoch of step `steps` with that step, and validates it. Comes before the callbacks that ask whether an
    epoch ends."""

    def __init__(self, steps: int) -> None:
        self._steps = steps

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A job that was interrupted after its last step must not train on."""
        self._end_if_due(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._end_if_due(trainer)

    def _end_if_due(self, trainer: Trainer) -> None:
        if trainer.global_step >= self._steps:
            trainer.should_stop = True
