"""Contrastive learning: two views of each image, and a loss over the views of all workers."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
import torchvision
from counted_hooks import Telling
from torch import nn
from torch.utils.data import DataLoader, Dataset


class _Views(Dataset[Any]):
    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        x = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(index))
        return (x + 0.1 * torch.randn_like(x), x + 0.1 * torch.randn_like(x)), index % 10


class Views(pl.LightningDataModule):
    def __init__(self, samples: int = 32) -> None:
        super().__init__()
        self.samples = samples

    def train_dataloader(self) -> Any:
        return DataLoader(_Views(self.samples), 4, shuffle=True)


class SimCLR(Telling):
    """forward gives features; the projection, with a normalization of its own, is for training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = torchvision.models.resnet18(weights=None)
        self.backbone.fc = nn.Identity()
        self.projection = nn.Sequential(nn.Linear(512, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 16))

    def forward(self, x: torch.Tensor) -> Any:
        return self.backbone(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        views, _ = batch
        own = [F.normalize(self.projection(self(view)), dim=1) for view in views]
        a, b = (self.all_gather(z, sync_grads=True).flatten(0, 1) for z in own)
        self.noted.setdefault("gathered", []).append(list(a.shape))
        self.noted["norm"] = type(self.projection[1]).__name__
        loss = F.cross_entropy(a @ b.T / 0.5, torch.arange(len(a)))
        self.log("ssl_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.06)
