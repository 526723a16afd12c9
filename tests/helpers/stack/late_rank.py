"""A module whose rank 1 is late in every step, so that rank 0 waits for it in the first exchange of statistics."""

from __future__ import annotations

import time

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

LATE_S = 0.2


class LateRank(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Flatten()
        )
        self.head = nn.Linear(128, 10)

    def training_step(self, batch: tuple[Tensor, Tensor], _index: int) -> Tensor:
        if self.global_rank == 1:
            time.sleep(LATE_S)
        images, labels = batch
        return nn.functional.cross_entropy(self.head(self.net(images)), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)
