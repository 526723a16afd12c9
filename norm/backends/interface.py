"""The interface of a backend."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch.distributed as dist
from torch import Tensor, nn

from syncnorm.norm.statistics.moments import Exchanged


class Running(NamedTuple):
    """Running statistics to move in place. momentum: weight of the new batch; None: the cumulative average.

    An empty batch moves nothing. One with a NaN or an infinity counts in `num_non_finite` and otherwise moves nothing.
    What is None stays None, but the cumulative average needs `num_batches`.
    """

    momentum: float | None
    mean: Tensor | None
    var: Tensor | None  # Bessel-corrected, with the count of the group
    num_batches: Tensor | None
    num_non_finite: Tensor


class Request(NamedTuple):
    """Batch normalization in training. group: whose batches count. layer: who asks. known: what x gave before."""

    weight: Tensor | None
    bias: Tensor | None
    eps: float
    group: dist.ProcessGroup | None
    layer: nn.Module | None
    known: Exchanged | None
    running: Running | None


class BatchNorm(Protocol):
    """A backend: the output for x (N, C, *), and what was exchanged for it."""

    def __call__(self, x: Tensor, request: Request) -> tuple[Tensor, Exchanged]: ...
