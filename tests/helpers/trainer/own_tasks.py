"""Networks and data modules for tasks other than classification, as a user might bring them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class Small(nn.Module):
    """A normalized network for vectors; or for maps with an output for every position."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(in_channels, 8), nn.BatchNorm1d(8), nn.Tanh())
        self.head = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.hidden(x))
        return out


class Targets(pl.LightningDataModule):
    """57 vectors, of which 46 are for training, with targets of one of these kinds."""

    def __init__(self, kind: str, task: str | None = None, num_classes: int | None = None) -> None:
        super().__init__()
        if task is not None:
            self.task = task
        if num_classes is not None:
            self.num_classes = num_classes
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(57, 5, generator=generator)
        numbers = self.x @ torch.randn(5, 3, generator=generator)
        self.y: Tensor = {
            "number": numbers[:, 0],
            "numbers": numbers,
            "labels": (numbers > 0).long(),
            "flags": numbers > 0,
            "floating labels": (numbers > 0).float(),
            "counts": (numbers.abs() * 2).long() + 2,
            "classes": numbers.argmax(1),
            "grid": numbers[:, None, :],
        }[kind]

    def _loader(self, part: slice, shuffle: bool) -> Any:
        return DataLoader(TensorDataset(self.x[part], self.y[part]), batch_size=4, shuffle=shuffle)

    def train_dataloader(self) -> Any:
        return self._loader(slice(46), True)

    def val_dataloader(self) -> Any:
        return self._loader(slice(46, None), False)


class PerPosition(nn.Module):
    """Class scores of every position from its channels alone, in one of several containers."""

    def __init__(self, num_classes: int, in_channels: int, gives: str = "tensor") -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(in_channels, 6, 1), nn.BatchNorm2d(6), nn.Tanh())
        self.head, self.aux_head = nn.Conv2d(6, num_classes, 1), nn.Conv2d(6, num_classes, 1)
        self.gives = gives

    def forward(self, x: Tensor) -> Any:
        features = self.body(x)
        out = self.head(features)
        if self.gives == "tensor":
            return out
        aux = self.aux_head(features)
        return {
            "dict": {"aux": aux, "out": out},
            "logits": {"aux": aux, "logits": out},
            "tuple": (out, aux),
            "dataclass": TwoOutputs(out, aux),
            "in training": {"out": out, "aux": aux} if self.training else out,
            "nothing": {"shape": x.shape},
        }[self.gives]


@dataclass
class TwoOutputs:
    out: Tensor
    aux: Tensor


class Windows:
    """Runs the network over windows of `width` columns, as MONAI's SlidingWindowInferer does."""

    calls = 0

    def __init__(self, width: int) -> None:
        self.width = width

    def __call__(self, x: Tensor, network: Callable[[Tensor], Tensor]) -> Tensor:
        Windows.calls += 1
        return torch.cat([network(part) for part in x.split(self.width, dim=-1)], dim=-1)


class SlidingWindow:
    """Windows of `roi_size` columns that see `halo` columns more on each side, as far as the picture goes, and answer
    without these."""

    def __init__(self, roi_size: int, halo: int) -> None:
        self.roi_size, self.halo = roi_size, halo

    def __call__(self, x: Tensor, network: Callable[[Tensor], Tensor]) -> Tensor:
        parts = []
        for start in range(0, x.shape[-1], self.roi_size):
            first, end = max(0, start - self.halo), start + self.roi_size
            parts.append(network(x[..., first : end + self.halo])[..., start - first : end - first])
        return torch.cat(parts, dim=-1)


class Halves:
    """An inferer that loses half of the positions."""

    def __call__(self, x: Tensor, network: Callable[[Tensor], Tensor]) -> Tensor:
        return network(x)[..., ::2]


class ChannelLoss:
    """The squared distance to one-hot masks, which must have a channel, as for MONAI's losses."""

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        if output.ndim != target.ndim:
            raise ValueError("the number of dimensions for input and target should be the same")
        wanted = nn.functional.one_hot(target[:, 0], output.shape[1]).movedim(-1, 1)
        return (output - wanted).square().mean()


class LearnedLoss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return (self.scale * (output - target)).square().mean()


def says_any() -> Any:
    return Small(3, 5)


def says_module() -> nn.Module:
    return Small(3, 5)


def says_network() -> Small:
    return Small(3, 5)


def says_lightning() -> pl.LightningModule:
    return pl.LightningModule()
