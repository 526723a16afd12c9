"""The one exchange between workers that normalization needs: everybody's row of float64 numbers, to everybody."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import _functional_collectives as functional


def world_size(group: dist.ProcessGroup | None) -> int:
    """Workers in `group` (None: all of them); 1 where torch.distributed is not initialised."""
    if not (dist.is_available() and dist.is_initialized()):
        return 1
    return dist.get_world_size(group)


def gather_rows(row: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """(F,) of every worker -> (W, F), in rank order, the same bits on every worker. One collective; no gradient."""
    if world_size(group) == 1:
        return row.unsqueeze(0)
    rows = functional.all_gather_tensor(row, 0, group or dist.distributed_c10d._get_default_group())
    arrived: Tensor = functional.wait_tensor(rows)  # type: ignore[no-untyped-call]
    return arrived.view(-1, row.numel())


class _AllReduce(torch.autograd.Function):
    @staticmethod
    def forward(row: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        return gather_rows(row, group).sum(0)

    @staticmethod
    def setup_context(ctx, inputs, _) -> None:  # type: ignore[no-untyped-def]
        ctx.group = inputs[1]

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        return all_reduce(grad, ctx.group), None


def all_reduce(row: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Sum of `row` (F,) over the group, added in rank order. Its adjoint is itself, so every derivative is right."""
    if world_size(group) == 1:
        return row
    reduced: Tensor = _AllReduce.apply(row, group)  # type: ignore[no-untyped-call]
    return reduced
