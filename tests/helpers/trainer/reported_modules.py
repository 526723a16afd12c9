"""LightningModules as people had them when they reported what tests/public/ tests."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import nn
from torchmetrics import Accuracy, CosineSimilarity

from tests.helpers.trainer.own_modules import Hooks


class ComputesAfterTraining(Hooks):
    """Computes its metric at the end of a training epoch, in dicts by split."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics = nn.ModuleDict({"train_metrics": nn.ModuleDict({"acc": Accuracy("multiclass", num_classes=3)})})

    def training_step(self, batch: Any, batch_idx: int) -> Any:  # noqa: ARG002
        x, y = batch
        self.metrics["train_metrics"]["acc"].update(nn.functional.one_hot(1 - y.clamp(max=1), 3).float(), y)  # type: ignore[index, operator, union-attr]
        return self.loss((x, y))

    def on_train_epoch_end(self) -> None:
        metric: Any = self.metrics["train_metrics"]["acc"]  # type: ignore[index]
        self.log("train_acc", metric.compute())
        metric.reset()


class KeepsCosines(Hooks):
    """Validates with a metric whose state is a list, as an attribute of the module."""

    def __init__(self) -> None:
        super().__init__()
        self.cosine = CosineSimilarity(reduction="mean")

    def validation_step(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        self.cosine.update(batch[0], batch[0].flip(1))
        self.log("val_cosine", self.cosine)


class GroupsMetrics(Hooks):
    """Groups its metrics by slashes, and names checkpoints and patience by them."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        self.log("valid/loss", self.loss(batch))

    def configure_callbacks(self) -> Any:
        return [
            EarlyStopping("valid/loss", patience=0, min_delta=100.0),
            ModelCheckpoint(monitor="valid/loss", filename="{epoch}_{valid/loss:.5f}"),
        ]


class CountsSteps(Hooks):
    """Notes the step that each batch is trained at."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[int, int]] = []

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        self.steps.append((self.current_epoch, self.global_step))


class LogsTwice(Hooks):
    """Logs a value in its step and once more when the epoch is over, with other arguments."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        self.log("loss_validate", self.loss(batch), on_step=False, on_epoch=True)

    def training_step(self, batch: Any, batch_idx: int) -> Any:  # noqa: ARG002
        loss = self.loss(batch)
        self.log("loss_train", loss)
        self.log("loss_train", loss, on_step=True, on_epoch=True)
        return loss
