"""A network over whole volumes, by parts that share the statistics of the whole."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from syncnorm import norm
from syncnorm.norm.tiling.tiled import MOST_TILES
from syncnorm.trainer.data.info import ReceptiveField


class JointWindows:
    """Called with (samples, network): what the network, in eval mode, gives for whole volumes, up to rounding.

    Zeros pad a volume to sides that the network takes, multiples of its total stride.
    Shape: (N, C, *spatial) -> (N, K, *spatial), in fp32 or wider.
    """

    def __init__(self, size: Sequence[int], field: ReceptiveField) -> None:
        self.size, self.field = tuple(size), field

    def __call__(self, x: Tensor, network: nn.Module) -> Tensor:
        spatial = x.shape[2:]
        x = F.pad(x, [pad for number in self._missing(spatial)[::-1] for pad in (0, number)])
        out: Tensor = norm.tiled(network, x, tile=self.tile(x))
        out = out.to(torch.promote_types(out.dtype, torch.float32))
        return out[(slice(None), slice(None), *(slice(side) for side in spatial))]

    def tile(self, x: Tensor) -> tuple[int, ...]:
        """All of it on a CPU, where parts that wait take more memory than the whole. Elsewhere windows, larger ones
        where they would be too many, and along an axis that one window sees to both ends all of it."""
        sides = tuple(x.shape[2:])
        if x.device.type == "cpu":
            return sides
        tile = list(self.size)
        while math.prod(map(_ceil_div, sides, tile)) > MOST_TILES:
            tile = [2 * side for side in tile]
        return tuple(
            whole if side + 2 * reach >= whole else side
            for whole, side, reach in zip(sides, tile, self.field.reach, strict=True)
        )

    def _missing(self, sides: Sequence[int]) -> list[int]:
        return [-side % stride for side, stride in zip(sides, self.field.strides, strict=True)]


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)
