"""A network with its task, as the LightningModule that is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import Metric

from syncnorm.trainer.contract.spec import JobSpec
from syncnorm.trainer.data import DataInfo
from syncnorm.trainer.data.loader import Batch
from syncnorm.trainer.ranks.replica_check import local_statistics
from syncnorm.trainer.training.optim import build_optimizer, build_schedule, clip_adaptive
from syncnorm.trainer.training.tasks import Scores, task_loss
from syncnorm.trainer.training.user_exchanges import refused
from syncnorm.trainer.training.user_metrics import UserMetrics, add_up
from syncnorm.trainer.training.user_module import (
    has_validation_step,
    own_optimizers,
    require_automatic,
    training_loss,
    unlogged,
)

METRICS = "metrics"


class TrainingModule(LightningModule):
    """Trains `network` on the task of `info`, as `spec` says.

    A rank's mean loss is multiplied by its batch's weight, world_size * n_r / N, so that what DDP averages is the
    gradient of the mean over the whole batch, however unevenly it is spread.
    A user's LightningModule gives its loss, and its optimizers if it has any; see `own_steps`.
    """

    def __init__(
        self,
        network: nn.Module,
        info: DataInfo,
        spec: JobSpec,
        total_steps: int,
        *,
        uneven_shares: Sequence[int] | None = None,
    ) -> None:
        """uneven_shares: samples of each rank in a last batch that training comes to and that is not spread evenly."""
        super().__init__()
        self._uneven_shares = uneven_shares
        # Lightning would do it only after a checkpoint was loaded, into float32 (lightning 2.6.6).
        self.network = network.double() if spec.train.precision == "64-true" else network
        if self._own is not None:
            require_automatic(self._own)
        self.info = info
        self.spec = spec
        self._total_steps = total_steps
        # Not registered as submodules: their counts differ from rank to rank and are not part of the model.
        self._scores = {
            "train": _persistent(Scores(info, "train", loss_only=self._own is not None)),
            "val": _persistent(Scores(info, "val")),
        }
        self._user_metrics = {"train": UserMetrics(), "val": UserMetrics()}
        self.train_metrics: dict[str, float] = {}
        self.val_metrics: dict[str, float] = {}

    @property
    def _own(self) -> LightningModule | None:
        return self.network if isinstance(self.network, LightningModule) else None

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.network(x)
        return output

    def on_fit_start(self) -> None:
        for scores in self._scores.values():
            scores.to(self.device)

    def on_train_start(self) -> None:
        self._listen("train")

    def on_validation_start(self) -> None:
        self._listen("val")

    def on_validation_end(self) -> None:
        self._listen("train")

    def on_fit_end(self) -> None:
        if self._own is not None:
            self._user_metrics["train"].detach(self._own)

    def _listen(self, stage: str) -> None:
        if self._own is not None:
            self._user_metrics[stage].attach(self._own)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if self._own is not None:
            return self._own_step(self._own, batch, batch_idx)
        output = self(batch.x)
        loss = task_loss(self.info, output, batch.y)
        self._scores["train"].update(output, batch.y, loss)
        return loss * batch.weight

    def uncounted_loss(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss that training_step returns for `batch`, without counting the batch in the metrics."""
        if self._own is not None:
            with unlogged(self._own):
                return training_loss(self._own, batch, batch_idx) * batch.weight
        return task_loss(self.info, self(batch.x), batch.y) * batch.weight

    def _own_step(self, own: LightningModule, batch: Batch, batch_idx: int) -> Tensor:
        self._user_metrics["train"].samples = len(batch.y)
        with refused(type(own).__name__, self._uneven_shares, len(batch.y)):
            loss = training_loss(own, batch, batch_idx)
        self._scores["train"].update_loss(loss, len(batch.y))
        return loss * batch.weight

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        output = self(batch.x)
        self._scores["val"].update(output, batch.y, task_loss(self.info, output, batch.y))
        if self._own is not None and has_validation_step(self._own) and len(batch.y):
            self._user_metrics["val"].samples = len(batch.y)
            self._own.validation_step(batch.data, batch_idx)

    def on_validation_epoch_end(self) -> None:
        self.val_metrics = self._finish("val")

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        # Lightning calls this after the gradients of 16-mixed have their true scale again, and before clip_grad_norm.
        if self.spec.train.clip_adaptive is not None:
            clip_adaptive(self.network, self.spec.train.clip_adaptive)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        if self._own is not None and (given := own_optimizers(self._own)) is not None:
            return given
        optimizer = build_optimizer(self.network, self.spec.optimizer)
        schedule = build_schedule(optimizer, self.spec.schedule, self._total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def finish_train_epoch(self) -> dict[str, float]:
        """The train metrics of the epoch that ends. Entered by every rank, by a callback: Lightning calls the module's
        own hook only after the callbacks, which want to report these."""
        self.train_metrics = self._finish("train")
        return self.train_metrics

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The metrics of the last epoch, for an attempt that finds nothing left to train."""
        checkpoint[METRICS] = {"train": self.train_metrics, "val": self.val_metrics}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.train_metrics, self.val_metrics = checkpoint[METRICS]["train"], checkpoint[METRICS]["val"]

    def own_state(self) -> dict[str, dict[str, Any]]:
        """State of this rank only: its counts of the epoch so far, and statistics that are not synchronized."""
        tensors = self.network.state_dict()
        return {
            "counted": {name: tensor.cpu() for name, tensor in self._scores["train"].state_dict().items()},
            "logged": self._user_metrics["train"].state(),
            "statistics": {name: tensors[name].cpu() for name in sorted(local_statistics(self.network))},
        }

    def restore_own_state(self, state: dict[str, dict[str, Any]]) -> None:
        self._scores["train"].load_state_dict(state["counted"])
        self._user_metrics["train"].restore(state["logged"])
        self.network.load_state_dict(state["statistics"], strict=False)

    def adopt_counted(self, states: list[dict[str, Any]]) -> None:
        """Take over the counts of ranks of another world size: all on rank 0, so that they count once."""
        if self.trainer.global_rank == 0:
            counted = [state["counted"] for state in states]
            self._scores["train"].load_state_dict(
                {name: torch.stack([each[name] for each in counted]).sum(0) for name in counted[0]}
            )
            self._user_metrics["train"].restore(add_up([state["logged"] for state in states]))

    def _finish(self, stage: str) -> dict[str, float]:
        values = {name: float(value) for name, value in self._scores[stage].compute().items()}
        self._scores[stage].reset()
        return {**self._user_metrics[stage].finish(), **values}


def _persistent(scores: Scores) -> Scores:
    for metric in scores.modules():
        if isinstance(metric, Metric):
            metric.persistent(True)
    return scores
