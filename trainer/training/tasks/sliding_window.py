"""A network over volumes of any size, by overlapping windows of the size that it was trained with."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from syncnorm.trainer.data.info import Windows

SIGMA = 1 / 8
"""Standard deviation of the Gaussian weights, in sides of a window, as in nnU-Net."""


class SlidingWindow:
    """Called with (samples, network): runs the network over windows and averages what it gives where they overlap.

    The first window of an axis lies at its start, the last one at its end, and the others evenly between them, so many
    that neighbours overlap by `windows.overlap` of a side at least. Zeros pad a sample smaller than a window.
    Shape: (N, C, *spatial) -> (N, K, *spatial), in fp32 or wider.
    """

    def __init__(self, size: Sequence[int], windows: Windows) -> None:
        self.size, self.windows = tuple(size), windows

    def __call__(self, x: Tensor, network: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.stack([self._volume(one, network) for one in x])

    def _volume(self, x: Tensor, network: Callable[[Tensor], Tensor]) -> Tensor:
        spatial = x.shape[1:]
        x = F.pad(x, [pad for side, own in _reversed(self.size, spatial) for pad in (0, max(side - own, 0))])
        total = weights = None
        for places in _batches(list(self.places(x.shape[1:])), self.windows.at_once):
            out = network(torch.stack([x[(slice(None), *place)] for place in places]))
            out = out.to(torch.promote_types(out.dtype, torch.float32))
            if total is None or weights is None:
                weight = self.weight(out)
                total, weights = out.new_zeros(out.shape[1], *x.shape[1:]), out.new_zeros(x.shape[1:])
            for place, values in zip(places, out, strict=True):
                total[(slice(None), *place)] += values * weight
                weights[place] += weight
        assert total is not None
        assert weights is not None
        return (total / weights)[(slice(None), *(slice(side) for side in spatial))]

    def places(self, spatial: Sequence[int]) -> Iterator[tuple[slice, ...]]:
        """Where the windows lie in a sample that is at least as large as one."""
        starts = [_starts(length, side, self.windows.overlap) for length, side in zip(spatial, self.size, strict=True)]
        for corner in itertools.product(*starts):
            yield tuple(slice(at, at + side) for at, side in zip(corner, self.size, strict=True))

    def weight(self, like: Tensor) -> Tensor:
        """How much each position of a window counts."""
        if self.windows.blending == "constant":
            return like.new_ones(self.size)
        each = [torch.arange(side, dtype=torch.float64) - (side - 1) / 2 for side in self.size]
        curves = [torch.exp(-0.5 * (at / (SIGMA * side)) ** 2) for at, side in zip(each, self.size, strict=True)]
        return reduce(lambda a, b: a[..., None] * b, curves).to(like)


def _starts(length: int, side: int, overlap: float) -> list[int]:
    rest = length - side
    count = math.ceil(rest / max(1, int(side * (1 - overlap)))) + 1
    return [round(index * rest / (count - 1)) for index in range(count)] if count > 1 else [0]


def _batches(places: list[tuple[slice, ...]], count: int) -> Iterator[list[tuple[slice, ...]]]:
    for start in range(0, len(places), count):
        yield places[start : start + count]


def _reversed(sides: Sequence[int], lengths: Sequence[int]) -> list[tuple[int, int]]:
    """As F.pad wants it: the last dimension first."""
    return list(zip(sides, lengths, strict=True))[::-1]
