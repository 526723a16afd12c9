"""The arguments that layers of every kind share, read off a layer or given by a user."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch.distributed import ProcessGroup

from syncnorm.norm.kind import Value

Momentum = float | Literal["default"] | None


@dataclass(frozen=True)
class LayerSpec:
    """The arguments of one layer.

    eps: None takes the default of the kind. momentum: weight of the new batch; None is the cumulative average,
    "default" that of the kind. process_group: who shares statistics; None is the default group. activation: whether a
    kind that is an activation too, is one here.
    """

    num_features: int
    dims: int = 2
    eps: float | None = None
    momentum: Momentum = "default"
    affine: bool = True
    track_running_stats: bool = True
    process_group: ProcessGroup | None = None
    activation: bool = True
    device: torch.device | None = None
    dtype: torch.dtype | None = None
    options: Mapping[str, Value] = field(default_factory=dict)

    def eps_or(self, default: float) -> float:
        return default if self.eps is None else self.eps

    def momentum_or(self, default: float) -> float | None:
        return default if self.momentum == "default" else self.momentum
