"""The one exchange between workers that normalization needs: every worker's row of float64 numbers, to every worker."""

from __future__ import annotations

import weakref
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from syncnorm.norm.distributed import timing as stopwatch
from syncnorm.norm.distributed.call_headers import Direction, ExchangeError
from syncnorm.norm.distributed.shared_memory import SharedMemoryTransport
from syncnorm.norm.distributed.transport import transport_of
from syncnorm.norm.torch_compat import all_gather_into, compiled_all_gather, default_group, has_only_gloo, is_batched

__all__ = ["ExchangeError", "all_reduce", "gather_differentiably", "gather_rows", "world_size"]


def world_size(group: dist.ProcessGroup | None) -> int:
    """Workers in `group` (None: all of them); 1 where torch.distributed is not initialised."""
    if not (dist.is_available() and dist.is_initialized()):
        return 1
    return dist.get_world_size(group)


def gather_rows(
    row: Tensor, group: dist.ProcessGroup | None, layer: nn.Module | None = None, direction: Direction = "forward"
) -> Tensor:
    """(F,) of every worker -> (W, F), in rank order, the same on every worker. One collective; no gradient.

    `layer` and `direction` say where we are, so that workers in different places raise ExchangeError (on the CPU,
    outside torch.compile) instead of waiting for ever.
    """
    return peek_rows(row.double().contiguous(), group, layer, direction).to(row.dtype, copy=True)


def peek_rows(row: Tensor, group: dist.ProcessGroup | None, layer: nn.Module | None, direction: Direction) -> Tensor:
    """`gather_rows` of a contiguous float64 row, without the copy: the next exchange may overwrite the result."""
    if world_size(group) == 1:
        return row.unsqueeze(0)
    timer = None if torch.compiler.is_compiling() else stopwatch.current()
    if timer is None:
        return _exchange(row, group, layer, direction)
    with timer.exchange(row.device):
        return _exchange(row, group, layer, direction)


def exchange_in_memory(group: dist.ProcessGroup | None, layer: nn.Module | None, num_channels: int) -> Any:
    """For the node in C++: None where this worker is the only one, NotImplemented where rows travel another way.

    Sets the transport up at first use, as every exchange does.
    """
    if world_size(group) == 1:
        return None
    transport = transport_of(group or default_group())
    if layer is None or not isinstance(transport, SharedMemoryTransport):
        return NotImplemented
    return transport.exchange_of(layer, num_channels) or NotImplemented


def exchange_by_group(group: dist.ProcessGroup | None, device: torch.device) -> Any:
    """For the node in C++ on a GPU: the name by which C++ finds the process group of the rows of `device`.

    None where this worker is the only one, NotImplemented where the rows travel by the CPU.
    """
    if world_size(group) == 1:
        return None
    members = group or default_group()
    return NotImplemented if _is_carried_by_cpu(device, members) else members.group_name


def _exchange(row: Tensor, group: dist.ProcessGroup | None, layer: nn.Module | None, direction: Direction) -> Tensor:
    members = group or default_group()
    if torch.compiler.is_compiling():
        return compiled_all_gather(row, members).view(-1, row.numel())
    if is_batched(row):
        raise ExchangeError(
            "workers can't exchange statistics in a vectorized backward (is_grads_batched, vectorize=True). Call "
            "torch.func.vmap on torch.func.vjp, or run one backward for each gradient."
        )
    if _is_carried_by_cpu(row.device, members):
        return transport_of(members).gather(row.cpu(), layer, direction).to(row.device)
    # Half the host time of the functional collective, whose result only a compiler needs.
    rows = row.new_empty(members.size(), row.numel())
    all_gather_into(rows, row, members)
    return rows


_HAS_ONLY_GLOO: weakref.WeakKeyDictionary[dist.ProcessGroup, bool] = weakref.WeakKeyDictionary()


def _is_carried_by_cpu(device: torch.device, group: dist.ProcessGroup) -> bool:
    """Also rows on a GPU where the group has nothing but gloo for it, which would copy them itself."""
    if device.type == "cpu":
        return True
    found = _HAS_ONLY_GLOO.get(group)
    if found is None:
        found = _HAS_ONLY_GLOO[group] = has_only_gloo(group, device)
    return found


class _AllReduce(torch.autograd.Function):
    @staticmethod
    def forward(row: Tensor, group: dist.ProcessGroup | None, layer: nn.Module | None) -> Tensor:
        return gather_rows(row, group, layer, "backward").sum(0)

    @staticmethod
    def setup_context(ctx, inputs, _) -> None:  # type: ignore[no-untyped-def]
        _, ctx.group, ctx.layer = inputs

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[no-untyped-def]
        return all_reduce(grad, ctx.group, ctx.layer), None, None

    @staticmethod
    def jvp(ctx, tangent: Tensor, *_: None) -> Tensor:  # type: ignore[no-untyped-def]
        return all_reduce(tangent, ctx.group, ctx.layer)

    @staticmethod
    def vmap(_, in_dims, row, group, layer):  # type: ignore[no-untyped-def]
        rows = row.movedim(in_dims[0], 0)
        return all_reduce(rows.flatten(), group, layer).view_as(rows), 0


def all_reduce(row: Tensor, group: dist.ProcessGroup | None, layer: nn.Module | None = None) -> Tensor:
    """Sum of `row` (F,) over the group, added in rank order. Its adjoint is itself, so every derivative is right."""
    if world_size(group) == 1:
        return row
    reduced: Tensor = _AllReduce.apply(row, group, layer)  # type: ignore[no-untyped-call]
    return reduced


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(row: Tensor, group: dist.ProcessGroup | None, layer: nn.Module | None) -> Tensor:
        return gather_rows(row, group, layer, "forward")

    @staticmethod
    def setup_context(ctx, inputs, _) -> None:  # type: ignore[no-untyped-def]
        _, ctx.group, ctx.layer = inputs

    @staticmethod
    def backward(ctx, grads_WF: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[no-untyped-def]
        # Every worker used our row, so the gradients of all of them are ours.
        total = all_reduce(grads_WF.flatten(), ctx.group, ctx.layer).view_as(grads_WF)
        return total[dist.get_rank(ctx.group)], None, None

    @staticmethod
    def jvp(ctx, tangent: Tensor, *_: None) -> Tensor:  # type: ignore[no-untyped-def]
        return gather_differentiably(tangent, ctx.group, ctx.layer)

    @staticmethod
    def vmap(_, in_dims, row, group, layer):  # type: ignore[no-untyped-def]
        rows = row.movedim(in_dims[0], 0)
        gathered = gather_differentiably(rows.flatten(), group, layer)
        return gathered.view(-1, *rows.shape), 1


def gather_differentiably(row: Tensor, group: dist.ProcessGroup | None, layer: nn.Module | None = None) -> Tensor:
    """`gather_rows` with every derivative, also in forward mode and under vmap. One collective each way."""
    if world_size(group) == 1:
        return row.unsqueeze(0)
    rows: Tensor = _Gather.apply(row, group, layer)  # type: ignore[no-untyped-call]
    return rows
