"""Ends training on request, at the end of an optimizer step, after a checkpoint."""

from __future__ import annotations

from typing import Any, NoReturn

from lightning.pytorch import LightningModule, Trainer

from syncnorm.trainer.callbacks.checkpoint import CheckpointWriter, between_steps
from syncnorm.trainer.callbacks.max_steps import ends_epoch
from syncnorm.trainer.contract.protocol import StopRequest
from syncnorm.trainer.errors import StopRequested
from syncnorm.trainer.ranks.stop_agreement import StopAgreement
from syncnorm.trainer.training.late_hooks import LateCallback


class StopOnRequest(LateCallback):
    """Stops between optimizer steps, and at the end of an epoch only after it was validated and reported."""

    def __init__(self, agreement: StopAgreement, checkpoints: CheckpointWriter) -> None:
        self._agreement = agreement
        self._checkpoints = checkpoints
        self._request: StopRequest | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._agreement.begin()

    def after_train_batch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._request = self._agreement.agreed()
        if self._request and between_steps(trainer) and not ends_epoch(trainer):
            self._stop(trainer, self._request)

    def after_train_epoch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._request:
            self._stop(trainer, self._request)

    def _stop(self, trainer: Trainer, request: StopRequest) -> NoReturn:
        self._checkpoints.save_and_wait(trainer)
        raise StopRequested(request, trainer.global_step, self._checkpoints.newest)
