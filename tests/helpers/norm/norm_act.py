"""timm's layers with dropout and activation inside: classes of its names, attributes and forward (timm 1.0)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BatchNormAct2d(nn.BatchNorm2d):
    def __init__(self, num_features: int, act: nn.Module | None = None, drop: nn.Module | None = None) -> None:
        super().__init__(num_features)
        self.drop = nn.Identity() if drop is None else drop
        self.act = nn.Identity() if act is None else act

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.track_running_stats:
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
        running = self.running_mean, self.running_var
        momentum = 0.0 if self.momentum is None else self.momentum
        x = F.batch_norm(x, *running, self.weight, self.bias, self.training, momentum, self.eps)
        out: Tensor = self.act(self.drop(x))
        return out


class GroupNormAct(nn.GroupNorm):
    def __init__(self, num_channels: int, act: nn.Module | None = None, drop: nn.Module | None = None) -> None:
        super().__init__(4, num_channels)
        self.drop = nn.Identity() if drop is None else drop
        self.act = nn.Identity() if act is None else act

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.drop(super().forward(x)))
        return out


class FrozenBatchNormAct2d(nn.Module):
    def __init__(self, num_features: int, act: nn.Module | None = None, drop: nn.Module | None = None) -> None:
        super().__init__()
        self.eps = 1e-5
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((num_features,), value))
        self.drop = nn.Identity() if drop is None else drop
        self.act = nn.Identity() if act is None else act

    def forward(self, x: Tensor) -> Tensor:
        weight, bias, mean, var = (
            self.get_buffer(name).view(1, -1, 1, 1) for name in ("weight", "bias", "running_mean", "running_var")
        )
        scale = weight * (var + self.eps).rsqrt()
        out: Tensor = self.act(self.drop(x * scale + bias - mean * scale))
        return out


LAYERS = (BatchNormAct2d, GroupNormAct, FrozenBatchNormAct2d)
for _layer in LAYERS:
    _layer.__module__ = "timm.layers.norm_act"
