"""An entry of the zoo: a network of a library, built small, and what it is called with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Architecture:
    """shapes: of the tensors that the network takes. name: unique in its library."""

    library: str
    name: str
    build: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def key(self) -> str:
        return f"{self.library}/{self.name}"

    def make(self) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
        """The network, the same at every call, as if it had learned a little: with no weights left that started as
        zeros, and other statistics; and its inputs."""
        torch.manual_seed(0)
        model, inputs = self.build(), tuple(torch.randn(shape) for shape in self.shapes)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
            model.train()(*inputs)
        return model.eval(), inputs


def on_images(size: int = 64, channels: int = 3, batch: int = 2) -> tuple[tuple[int, ...], ...]:
    return ((batch, channels, size, size),)


def on_volumes(size: int = 32, channels: int = 1, batch: int = 2) -> tuple[tuple[int, ...], ...]:
    return ((batch, channels, size, size, size),)


class Heads(nn.Module):
    """What of a detector is the same function for any weights: backbone and heads, without the choice of boxes."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.backbone = detector.backbone
        self.head = detector.rpn.head if hasattr(detector, "rpn") else detector.head

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(list(self.backbone(x).values()))
