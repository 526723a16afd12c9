"""What every worker must know of the others' part of a batch. Every collective is entered by every worker."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from norm.moments import Moments, as_row, merge, of_row


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def mean(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The mean of each tensor over the workers, in one exchange."""
    if world_size() == 1:
        return list(tensors)
    flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
    dist.all_reduce(flat)
    parts = (flat / world_size()).split([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


def total(tensor: Tensor) -> Tensor:
    """The sum over the workers."""
    if world_size() > 1:
        dist.all_reduce(tensor := tensor.clone())
    return tensor


def largest(tensor: Tensor) -> Tensor:
    """The greatest of the workers' values, one by one."""
    if world_size() > 1:
        dist.all_reduce(tensor := tensor.clone(), op=dist.ReduceOp.MAX)
    return tensor


def union(moments: dict[str, Moments]) -> dict[str, Moments]:
    """The moments of all workers' values, by the same keys, in one exchange."""
    if world_size() == 1 or not moments:
        return moments
    rows = [as_row(each) for each in moments.values()]
    everyone = [torch.empty_like(torch.cat(rows)) for _ in range(world_size())]
    dist.all_gather(everyone, torch.cat(rows))
    split = [worker.split([len(row) for row in rows]) for worker in everyone]
    merged = {}
    for key, of_workers in zip(moments, zip(*split, strict=True), strict=True):
        parts = [of_row(row) for row in of_workers]
        stacked = [torch.stack([getattr(part, name) for part in parts]) for name in ("count", "mean", "m2")]
        merged[key] = merge(*stacked)
    return merged
