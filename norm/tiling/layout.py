"""Where tiles lie in a picture, and which part of each map of a tile is its own."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

Scales = tuple[Fraction, ...]
"""Positions of a map for one of the picture, an axis each: 1/8 at total stride 8."""


@dataclass(frozen=True)
class Interval:
    """One axis of a tile: what the network sees, [start, stop), and what counts of it, [core_start, core_stop)."""

    start: int
    stop: int
    core_start: int
    core_stop: int
    side: int
    """Of the whole picture."""

    def core(self, scale: Fraction, length: int) -> slice:
        """Its own positions in a map of `length` positions. The last tile of an axis has all up to the end."""
        first = math.floor((self.core_start - self.start) * scale)
        is_last = self.core_stop == self.side
        return slice(first, length if is_last else math.floor((self.core_stop - self.start) * scale))

    def place(self, scale: Fraction, count: int) -> slice:
        """Where its `count` own positions lie in the map of the whole."""
        first = math.floor(self.core_start * scale)
        return slice(first, first + count)


Tile = tuple[Interval, ...]


def tiles_of(sides: Sequence[int], tile: Sequence[int], halo: Sequence[int], strides: Sequence[int]) -> list[Tile]:
    """The tiles of a picture, the one at the end of all axes first. tile, halo: multiples of `strides`."""
    axes = [list(_intervals(*numbers)) for numbers in zip(sides, tile, halo, strides, strict=True)]
    return list(itertools.product(*axes))[::-1]


def _intervals(side: int, tile: int, halo: int, stride: int) -> Iterator[Interval]:
    starts = list(range(0, side, tile))
    if len(starts) > 1 and side - starts[-1] < stride:
        starts.pop()  # too short for a position of the smallest map
    for start, stop in itertools.pairwise([*starts, side]):
        yield Interval(max(0, start - halo), min(side, stop + halo), start, stop, side)


def slices(tile: Tile) -> tuple[slice, ...]:
    return tuple(slice(one.start, one.stop) for one in tile)


def cores(tile: Tile, scales: Scales, sides: Sequence[int]) -> tuple[slice, ...]:
    return tuple(one.core(scale, side) for one, scale, side in zip(tile, scales, sides, strict=True))


def places(tile: Tile, scales: Scales, counts: Sequence[int]) -> tuple[slice, ...]:
    return tuple(one.place(scale, count) for one, scale, count in zip(tile, scales, counts, strict=True))
