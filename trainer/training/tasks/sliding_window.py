"""A network over volumes of any size, by overlapping windows of the size that it was trained with."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from syncnorm.trainer.data.info import ReceptiveField, Windows

SIGMA = 1 / 8
"""Standard deviation of the Gaussian weights, in sides of a window, as in nnU-Net."""


class SlidingWindow:
    """Called with (samples, network): runs the network over windows and averages what it gives where they overlap.

    The first window of an axis lies at its start, the last one at its end, and the others evenly between them, so many
    that neighbours overlap by `windows.overlap` of a side at least. Zeros pad a sample smaller than a window.

    With an overlap of `auto` windows begin at multiples of the network's total stride, zeros pad a sample to one, and
    what lies nearer to an inner border than the network looks does not count. So a network that normalizes by running
    statistics answers as for the whole sample.
    Shape: (N, C, *spatial) -> (N, K, *spatial), in fp32 or wider.
    """

    def __init__(self, size: Sequence[int], windows: Windows) -> None:
        self.size, self.windows = tuple(size), windows
        none = ReceptiveField((0,) * len(self.size), (1,) * len(self.size))
        field = windows.field if windows.overlap == "auto" else none
        assert field is not None
        self.halo, self.strides = field

    def __call__(self, x: Tensor, network: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.stack([self._volume(one, network) for one in x])

    def _volume(self, x: Tensor, network: Callable[[Tensor], Tensor]) -> Tensor:
        spatial = x.shape[1:]
        x = F.pad(x, [pad for numbers in self._axes(spatial)[::-1] for pad in (0, _missing(*numbers))])
        total = weights = None
        for places in _batches(list(self.places(x.shape[1:])), self.windows.at_once):
            out = network(torch.stack([x[(slice(None), *place)] for place in places]))
            out = out.to(torch.promote_types(out.dtype, torch.float32))
            if total is None or weights is None:
                weight = self.weight(out)
                total, weights = out.new_zeros(out.shape[1], *x.shape[1:]), out.new_zeros(x.shape[1:])
            for place, values in zip(places, out, strict=True):
                counted = self._counted(weight, place, x.shape[1:])
                total[(slice(None), *place)] += values * counted
                weights[place] += counted
        assert total is not None
        assert weights is not None
        return (total / weights)[(slice(None), *(slice(side) for side in spatial))]

    def places(self, spatial: Sequence[int]) -> Iterator[tuple[slice, ...]]:
        """Where the windows lie in a sample that is at least as large as one."""
        overlap = self.windows.overlap
        starts = [
            _starts_by_halo(length, side, halo) if overlap == "auto" else _starts(length, side, overlap)
            for length, side, halo in zip(spatial, self.size, self.halo, strict=True)
        ]
        for corner in itertools.product(*starts):
            yield tuple(slice(at, at + side) for at, side in zip(corner, self.size, strict=True))

    def weight(self, like: Tensor) -> Tensor:
        """How much each position of a window counts."""
        if self.windows.blending == "constant":
            return like.new_ones(self.size)
        each = [torch.arange(side, dtype=torch.float64) - (side - 1) / 2 for side in self.size]
        curves = [torch.exp(-0.5 * (at / (SIGMA * side)) ** 2) for at, side in zip(each, self.size, strict=True)]
        return reduce(lambda a, b: a[..., None] * b, curves).to(like)

    def _counted(self, weight: Tensor, place: Sequence[slice], spatial: Sequence[int]) -> Tensor:
        """`weight` without the halo at the inner borders of a window."""
        if not any(self.halo):
            return weight
        weight = weight.clone()
        for axis, (own, halo, length) in enumerate(zip(place, self.halo, spatial, strict=True)):
            if own.start > 0:
                weight.narrow(axis, 0, halo).zero_()
            if own.stop < length:
                weight.narrow(axis, own.stop - own.start - halo, halo).zero_()
        return weight

    def _axes(self, spatial: Sequence[int]) -> list[tuple[int, int, int]]:
        return list(zip(spatial, self.size, self.strides, strict=True))


def _missing(length: int, side: int, stride: int) -> int:
    """To a window at least, and to a multiple of the stride."""
    least = max(length, side)
    return least - length + -least % stride


def _starts(length: int, side: int, overlap: float) -> list[int]:
    rest = length - side
    count = math.ceil(rest / max(1, int(side * (1 - overlap)))) + 1
    return [round(index * rest / (count - 1)) for index in range(count)] if count > 1 else [0]


def _starts_by_halo(length: int, side: int, halo: int) -> list[int]:
    """Where the parts of windows without their halos cover everything."""
    last = length - side
    return [*range(0, last, side - 2 * halo), last]


def _batches(places: list[tuple[slice, ...]], count: int) -> Iterator[list[tuple[slice, ...]]]:
    for start in range(0, len(places), count):
        yield places[start : start + count]
