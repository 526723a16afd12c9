"""A module whose rank 1 falls asleep in its fifth step, while rank 0 waits for its gradients."""

from __future__ import annotations

import time

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn


class FallsAsleep(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        if index == 4 and self.global_rank == 1:
            self.falls_asleep()
        images, labels = batch
        return nn.functional.cross_entropy(self.net(images), labels)

    def falls_asleep(self) -> None:
        time.sleep(3600)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)
