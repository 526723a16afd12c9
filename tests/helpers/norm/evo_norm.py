"""timm's EvoNorm: two classes of its names, attributes and formulas (timm 1.0)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class EvoNorm2dB0(nn.Module):
    """x / max(std of the batch, v * x + std of the sample)."""

    running_var: Tensor

    def __init__(self, num_features: int, apply_act: bool = True) -> None:
        super().__init__()
        self.apply_act, self.momentum, self.eps = apply_act, 0.1, 1e-3
        self.weight, self.bias = nn.Parameter(torch.ones(num_features)), nn.Parameter(torch.zeros(num_features))
        self.v = nn.Parameter(torch.ones(num_features)) if apply_act else None
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.view(-1, 1, 1), self.bias.view(-1, 1, 1)
        if self.v is None:
            return x * weight + bias
        var = x.var((0, 2, 3), correction=0) if self.training else self.running_var
        if self.training:
            self.running_var.lerp_(var.detach(), self.momentum)
        own = (x.var((2, 3), correction=0, keepdim=True) + self.eps).sqrt()
        left = (var + self.eps).sqrt().view(-1, 1, 1)
        return x / torch.maximum(left.expand_as(x), self.v.view(-1, 1, 1) * x + own) * weight + bias


class EvoNorm2dS0(nn.Module):
    """x * sigmoid(v * x) / std of its group."""

    def __init__(self, num_features: int, groups: int = 4, apply_act: bool = True) -> None:
        super().__init__()
        self.apply_act, self.groups, self.eps = apply_act, groups, 1e-5
        self.weight, self.bias = nn.Parameter(torch.ones(num_features)), nn.Parameter(torch.zeros(num_features))
        self.v = nn.Parameter(torch.ones(num_features)) if apply_act else None

    def forward(self, x: Tensor) -> Tensor:
        y = x
        if self.v is not None:
            var = (
                x.unflatten(1, (self.groups, -1))
                .var((2, 3, 4), correction=0)
                .repeat_interleave(x.shape[1] // self.groups, 1)
            )
            y = x * torch.sigmoid(self.v.view(-1, 1, 1) * x) / (var + self.eps).sqrt()[..., None, None]
        return y * self.weight.view(-1, 1, 1) + self.bias.view(-1, 1, 1)


for _layer in (EvoNorm2dB0, EvoNorm2dS0):
    _layer.__module__ = "timm.layers.evo_norm"
