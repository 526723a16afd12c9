"""Detection as torchvision's users write it: images of several sizes, targets as dicts, precision over all of them."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import lightning.pytorch as pl
import torch
import torchvision
from counted_hooks import Telling
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics.detection import MeanAveragePrecision


class _Squares(Dataset[Any]):
    """A bright square in each image."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        generator = torch.Generator().manual_seed(1000 * self.seed + index)
        image = torch.rand(3, 64 + 8 * (index % 3), 64 + 8 * (index % 2), generator=generator) * 0.2
        x, y = (int(v) for v in torch.randint(2, 30, (2,), generator=generator))
        image[:, y : y + 20, x : x + 20] += 0.7
        return image, {"boxes": torch.tensor([[x, y, x + 20, y + 20]]).float(), "labels": torch.tensor([1])}


def _as_lists(samples: Any) -> Any:
    return tuple(zip(*samples, strict=True))


class Boxes(pl.LightningDataModule):
    num_classes = 2

    def train_dataloader(self) -> Any:
        return DataLoader(_Squares(16, 0), 2, shuffle=True, collate_fn=_as_lists)

    def val_dataloader(self) -> Any:
        return DataLoader(_Squares(7, 1), 2, collate_fn=_as_lists)


class Detector(Telling):
    """Faster R-CNN on a small backbone with batch normalization, all of it trained."""

    def __init__(self, num_classes: int = 2) -> None:
        super().__init__()
        self.net = torchvision.models.detection.FasterRCNN(
            _backbone(),
            num_classes,
            rpn_anchor_generator=torchvision.models.detection.anchor_utils.AnchorGenerator(((16, 24, 32),), ((1.0,),)),
            box_roi_pool=torchvision.ops.MultiScaleRoIAlign(["0"], 5, 2),
            min_size=64,
            max_size=96,
        )
        self.precision = MeanAveragePrecision()
        self.seen: list[Any] = []

    def forward(self, images: Any, targets: Any = None) -> Any:
        return self.net(images, targets)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        images, targets = batch
        losses = self.net(list(images), list(targets))
        self.log_dict(losses, batch_size=len(images))
        self.noted["norm"] = type(self.net.backbone[1]).__name__
        return sum(losses.values())

    def on_validation_epoch_start(self) -> None:
        self.seen = []

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        images, targets = batch
        found = self.net(list(images))
        self.precision.update(found, list(targets))
        self.seen += [_plain(*pair) for pair in zip(found, targets, strict=True)]

    def on_validation_epoch_end(self) -> None:
        self.log("map50", self.precision.compute()["map_50"])
        self.precision.reset()

    def facts(self) -> dict[str, Any]:
        return super().facts() | {"seen": self.seen}

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.02, momentum=0.9)


def _plain(found: dict[str, torch.Tensor], target: dict[str, torch.Tensor]) -> dict[str, Any]:
    kept = {name: values.tolist() for name, values in found.items()}
    return kept | {"truth": target["boxes"].tolist()}


def _backbone() -> nn.Module:
    widths = (3, 16, 32, 64)
    layers = [layer for i, o in pairwise(widths) for layer in (nn.Conv2d(i, o, 3, 2, 1), nn.BatchNorm2d(o), nn.ReLU())]
    backbone = nn.Sequential(*layers)
    backbone.out_channels = 64  # type: ignore[assignment]
    return backbone
