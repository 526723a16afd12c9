"""The metrics of the last epoch, for all that judge it: progress, early stopping, the best checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from syncnorm.trainer.contract.mlflow_rest import mlflow_name
from syncnorm.trainer.ranks.exchange import gather
from syncnorm.trainer.reporting.metric_spool import TRAIN_LOSS
from syncnorm.trainer.training.batch_size import Count, LoggedBatchSize, samples_in
from syncnorm.trainer.training.late_hooks import LateCallback
from syncnorm.trainer.training.logged_metrics import as_numbers, common_name, is_fork
from syncnorm.trainer.training.task_module import TaskModule


class EpochMetrics(LateCallback):
    """`latest`: what Lightning's callbacks can monitor, as numbers, the same on every rank.

    `train/loss` of a LightningModule is the mean of what training_step returned, over all samples of all ranks, unless
    it logs one by epoch itself. Comes before the callbacks that read it.
    """

    def __init__(self, count: Count | None = None) -> None:
        """count: gives the samples of a batch; None: what the module logs, or its length."""
        self.latest: dict[str, float] = {}
        self._count = count
        self._logged: LoggedBatchSize | None = None
        self._loss: Tensor | float = 0.0
        self._counted = 0
        self._is_loss_ours = False
        self._samples = 0

    @property
    def samples(self) -> int:
        """Samples that this rank has trained on in the epoch so far, since the attempt began."""
        return self._samples

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._logged = LoggedBatchSize(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        assert self._logged is not None
        self._logged.reset()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._samples = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        samples = self._samples_of(batch, trainer)
        self._samples += samples
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if not isinstance(pl_module, TaskModule) and isinstance(loss, Tensor) and loss.numel() == 1:
            self._loss = self._loss + loss.detach().double() * samples
            self._counted += samples

    def _samples_of(self, batch: Any, trainer: Trainer) -> int:
        if self._count is not None:
            return self._count(batch)
        if self._logged is not None and self._logged.latest is not None:
            return self._logged.latest
        order = getattr(trainer.train_dataloader, "order", None)
        return samples_in(batch, order.how.batch_size if order else None, is_last=trainer.is_last_batch)

    def after_train_epoch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        found = trainer._logger_connector._callback_metrics
        if not isinstance(pl_module, TaskModule):
            self._add_train_loss(found)
        own = {mlflow_name(name): value for name, value in as_numbers(found).items() if not is_fork(name, found)}
        self.latest = gather(own)[0]  # what was logged by step alone is each rank's own

    def _add_train_loss(self, found: dict[str, Any]) -> None:
        if self._is_loss_ours:
            found.pop(TRAIN_LOSS, None)
        total, samples = torch.tensor(gather((float(self._loss), self._counted)), dtype=torch.float64).sum(0)
        self._loss, self._counted = 0.0, 0
        self._is_loss_ours = TRAIN_LOSS not in found
        if self._is_loss_ours and samples:
            found[TRAIN_LOSS] = total / samples
        elif self._is_loss_ours:  # training_step returns no loss, as with manual optimization
            logged = [value for name, value in found.items() if common_name(name) == TRAIN_LOSS]
            found.update({TRAIN_LOSS: logged[-1]} if logged else {})

    def rank_state(self) -> dict[str, Any]:
        """What this rank has counted in the epoch so far."""
        return {"loss": float(self._loss), "counted": self._counted}

    def restore_rank_state(self, state: dict[str, Any]) -> None:
        self._loss, self._counted = state["loss"], state["counted"]

    def adopt_rank_states(self, states: list[dict[str, Any]], rank: int) -> None:
        """Take over the counts of another number of ranks: all on rank 0, so that they count once."""
        if rank == 0:
            self._loss, self._counted = (sum(state[name] for state in states) for name in ("loss", "counted"))

    def require(self, field: str, monitor: str) -> float:
        """The metric `monitor`. Raises: ValueError naming the field of the spec and the metrics that there are."""
        if monitor not in self.latest:
            known = ", ".join(sorted(self.latest)) or "none"
            raise ValueError(f"{field} must be one of {known}; got {monitor!r}. Change the monitor.")
        return self.latest[monitor]

    def state_dict(self) -> dict[str, Any]:
        return {"latest": self.latest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.latest = dict(state_dict["latest"])
