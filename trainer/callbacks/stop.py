"""Ends training on request, at the end of an optimizer step, after a checkpoint."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from trainer.callbacks.checkpoint import CheckpointWriter
from trainer.control import StopAgreement, StopRequested


class StopOnRequest(Callback):
    """Stops between optimizer steps only: gradients accumulated half way are in no checkpoint."""

    def __init__(self, agreement: StopAgreement, checkpoints: CheckpointWriter) -> None:
        self._agreement = agreement
        self._checkpoints = checkpoints

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._agreement.begin()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        request = self._agreement.agreed()
        accumulating = trainer.fit_loop._should_accumulate()
        if request and not accumulating:
            self._checkpoints.save(trainer)
            newest = self._checkpoints.newest
            raise StopRequested(request, trainer.global_step, str(newest.path) if newest else None)
