"""What every worker must know of the others' share of a batch. Every collective is entered by every worker."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from syncnorm.norm import SyncBatchNorm, SyncBatchRenorm
from syncnorm.norm.statistics.moments import Moments, as_row, merge, of_row
from syncnorm.trainer.data.info import Ragged
from syncnorm.trainer.data.loader import Batch


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


def whole(batch: Any, device: torch.device) -> Any:
    """On worker 0 the batch of all workers, in the order of their ranks; None on the others.

    Raises: ValueError on worker 0 if the workers' batches can't be joined leaf by leaf.
    """
    if world_size() == 1:
        return batch
    is_ours = isinstance(batch, Batch)
    parts: list[Any] | None = [None] * world_size() if dist.get_rank() == 0 else None
    own = batch.data if is_ours else batch
    dist.gather_object(move_data_to_device(own, torch.device("cpu")), parts)
    if parts is None:
        return None
    joined = tree_map(lambda *each: _joined(each, device), *parts)
    return Batch(joined, weight=1.0, is_whole=True) if is_ours else joined


def _joined(parts: Sequence[Any], device: torch.device) -> Any:
    if isinstance(parts[0], Ragged):
        return Ragged(move_data_to_device(sample, device) for part in parts for sample in part)
    return torch.cat(list(parts)).to(device) if isinstance(parts[0], Tensor) else parts[0]


_SYNCHRONIZED = (nn.SyncBatchNorm, SyncBatchNorm, SyncBatchRenorm)


def shares_statistics(layer: nn.Module) -> bool:
    """Whether it computes statistics of a batch over a process group. Metrics have such a group too, and
    SyncGroupNorm's joins the parts of one sample."""
    return isinstance(layer, _SYNCHRONIZED)


@contextmanager
def on_its_own(network: nn.Module, of_one: dist.ProcessGroup | None) -> Iterator[None]:
    """Within, layers of `network` that share statistics share them within `of_one`, a group of this worker alone."""
    shared = [layer for layer in network.modules() if shares_statistics(layer)]
    before = [layer.process_group for layer in shared]
    try:
        for layer in shared:
            layer.process_group = of_one  # type: ignore[assignment]
        yield
    finally:
        for layer, group in zip(shared, before, strict=True):
            layer.process_group = group
