"""A user's model with a mistake in it."""

from __future__ import annotations

import torch
from torch import nn


class Broken(nn.Module):
    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.linear = nn.Linear(64, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            raise KeyError("no such feature: wavelets")
        out: torch.Tensor = self.linear(x.flatten(1))
        return out
