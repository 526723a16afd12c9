"""Classifiers of images with the habits of everyday work: hooks, callbacks, schedules, metrics, averages."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from counted_hooks import Telling, counted
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, StochasticWeightAveraging
from torch import nn
from torchmetrics.classification import MulticlassAccuracy


@counted
class Finetuned(Telling):
    """A backbone that is frozen for an epoch, a rate for each part, and a schedule by a metric of its own."""

    def __init__(self, num_classes: int = 10, head_lr: float = 0.05, frozen_epochs: int = 1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.backbone = torchvision.models.resnet18(weights=None)
        self.backbone.fc = nn.Identity()
        self.head = nn.Linear(512, num_classes)
        self.train_accuracy = MulticlassAccuracy(num_classes)
        self.val_accuracy = MulticlassAccuracy(num_classes)

    def configure_callbacks(self) -> Any:
        return [EarlyStopping("val_acc", mode="max", patience=1, min_delta=2.0), LearningRateMonitor()]

    def on_train_epoch_start(self) -> None:
        is_trained = self.current_epoch >= self.hparams["frozen_epochs"]
        self.backbone.requires_grad_(is_trained)
        self.noted.setdefault("trained", []).append(is_trained)
        self.noted.setdefault("stem", []).append(float(self.backbone.conv1.weight.detach().double().sum()))

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(self.backbone(x))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y, *_ = batch
        scores = self(x)
        loss = F.cross_entropy(scores, y)
        self.train_accuracy(scores, y)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        self.log("train_acc", self.train_accuracy, on_epoch=True)
        self.noted["norm"] = type(self.backbone.bn1).__name__
        if batch_idx == 0:
            self.log_examples(x)
        return loss

    def log_examples(self, x: torch.Tensor) -> None:
        if hasattr(getattr(self.logger, "experiment", None), "add_image"):
            self.logger.experiment.add_image("first", x[0], self.current_epoch)
            self.logger.experiment.log_text(f"epoch {self.current_epoch}", "notes.txt")

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        x, y, *_ = batch
        scores = self(x)
        if dataloader_idx == 0:
            self.val_accuracy(scores, y)
            self.log("val_acc", self.val_accuracy, on_epoch=True, add_dataloader_idx=False)
        self.log("val_loss", F.cross_entropy(scores, y), sync_dist=True)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(
            [
                {"params": self.backbone.parameters(), "lr": 1e-3},
                {"params": self.head.parameters(), "lr": self.hparams["head_lr"]},
            ]
        )
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", patience=0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": "val_acc"}}


class Averaged(Finetuned):
    """An average of the head by a hook, and one of all weights by Lightning's callback."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__(num_classes, frozen_epochs=0)
        self.average = torch.optim.swa_utils.AveragedModel(self.head)

    def on_train_batch_end(self, *_: Any) -> None:
        self.average.update_parameters(self.head)

    def configure_callbacks(self) -> Any:
        return [StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1)]

    def facts(self) -> dict[str, Any]:
        return super().facts() | {"averaged": int(self.average.n_averaged)}


class BuiltLate(Telling):
    """Builds its network in configure_model, and takes batches of any form."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.net: Any = None

    def configure_model(self) -> None:
        if self.net is None:
            self.net = _small(self.num_classes)

    def forward(self, x: torch.Tensor) -> Any:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = (batch["image"], batch["label"]) if isinstance(batch, dict) else batch[:2]
        self.noted["norm"] = type(self.net[1]).__name__
        self.noted["samples"] = self.noted.get("samples", 0) + len(y)
        self.noted["labels"] = self.noted.get("labels", 0) + int(y.sum())
        return F.cross_entropy(self(x), y)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.01)


class BuiltInSetup(BuiltLate):
    """Builds its network in setup, from what the data module says."""

    def configure_model(self) -> None: ...

    def setup(self, stage: str) -> None:
        self.net = _small(self.trainer.datamodule.num_classes)  # type: ignore[attr-defined]


def _small(num_classes: int) -> nn.Module:
    pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes)]
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), *pooled)


class TwoPlayers(Telling):
    """Manual optimization with two optimizers, and no forward."""

    def __init__(self, num_classes: int = 10, automatic: bool = False) -> None:
        super().__init__()
        self.automatic_optimization = automatic
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, num_classes)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        for optimizer in self.optimizers():  # type: ignore[union-attr]
            loss = F.cross_entropy(self.second(self.first(batch[0].mean((2, 3)))), batch[1])
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        self.log("train_loss", loss)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.first.parameters(), 0.1), torch.optim.SGD(self.second.parameters(), 0.1)
