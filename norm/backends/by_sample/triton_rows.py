"""Group normalization of channels_last tensors on a GPU by the kernels of sample_triton_kernels.py.

Statistics as in cpu_rows.py. Nothing here waits for the GPU. Tested by Triton's interpreter, on a CPU.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from syncnorm.norm.backends.cuda_triton import (
    ceil_div,
    flat,
    on_its_device,
    power_of_two,
    takes,
    triton_dtype,
    two_floats,
)
from syncnorm.norm.backends.memory_layout import layout_of

__all__ = ["backward", "forward", "takes"]

_TILE = 2048  # elements that a program holds at a time
_CHANNELS = 128  # of them next to each other
_TILES = 16  # that one program adds up
_PARTS = 512  # that a program merges at a time


@on_its_device
def forward(
    x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """The output and the statistics."""
    N, C, L, _ = layout_of(x)
    plan = _plan_of(C, L, x.dtype)
    parts = _doubles(x, N, plan.splits, 2, C)
    statistics = _doubles(x, N, 2, num_groups)
    table = torch.empty(N, 3, C, dtype=plan.table_dtype, device=x.device)
    y = torch.empty_like(x)
    _kernels().row_statistics[plan.splits, plan.blocks, N](x, parts, L, C, plan.rows, *plan.constants)
    _kernels().group_statistics[1, num_groups, N](
        parts, statistics, table, flat(weight), flat(bias), plan.splits, L, C, C // num_groups, *two_floats(eps),
        plan.rows, _PARTS,
    )  # fmt: skip
    _kernels().normalize_rows[plan.tiles, plan.blocks, N](x, y, table, L, C, *plan.constants)
    return y, statistics


@on_its_device
def backward(x: Tensor, dy: Tensor, statistics: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias. dy: in the memory format of x."""
    N, C, L, _ = layout_of(x)
    G = statistics.shape[2]
    plan = _plan_of(C, L, x.dtype)
    parts = _doubles(x, N, plan.splits, 2, C)
    table = torch.empty(N, 4, C, dtype=plan.table_dtype, device=x.device)
    dx = torch.empty_like(x)
    _kernels().row_gradient_sums[plan.splits, plan.blocks, N](
        x, dy, statistics, parts, L, C, G, plan.rows, *plan.constants
    )
    sums = parts.sum(1)
    _kernels().group_gradients[1, G, N](sums, statistics, table, flat(weight), L, C, C // G, _PARTS)
    _kernels().differentiate_rows[plan.tiles, plan.blocks, N](x, dy, dx, table, L, C, *plan.constants)
    invstd = statistics[:, 1].repeat_interleave(C // G, dim=1)
    return dx, (sums[:, 1] * invstd).sum(0), sums[:, 0].sum(0)


class _Tiling(NamedTuple):
    """How the kernels walk through the rows of a sample."""

    rows: int  # that one program adds up
    splits: int
    tiles: int
    blocks: int  # of channels
    table_dtype: torch.dtype
    constants: tuple[Any, ...]  # BA, BB, ACC


@functools.lru_cache(4096)
def _plan_of(C: int, L: int, dtype: torch.dtype) -> _Tiling:
    BB = min(power_of_two(C), _CHANNELS)
    BA = max(1, min(_TILE // BB, power_of_two(L)))
    rows = BA * _TILES
    table_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    constants = (BA, BB, triton_dtype(table_dtype))
    return _Tiling(rows, ceil_div(L, rows), ceil_div(L, BA), ceil_div(C, BB), table_dtype, constants)


def _doubles(x: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float64, device=x.device)


@functools.cache
def _kernels() -> Any:
    from syncnorm.norm.backends.by_sample import sample_triton_kernels

    return sample_triton_kernels
