"""What each batch normalization makes of the statistics of all micro-batches: scale, shift and running statistics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from syncnorm.norm.accumulation.joint_batch_norm import Shared, share
from syncnorm.norm.backends.cpu_aten import update_running
from syncnorm.norm.distributed.collectives import world_size
from syncnorm.norm.layers.batch_renorm import BatchRenorm, SyncBatchRenorm
from syncnorm.norm.layers.sync_batch_norm import SyncBatchNorm
from syncnorm.norm.reading.norm_act import norm_class
from syncnorm.norm.statistics.moments import Moments, of_row
from syncnorm.norm.statistics.snapshots import note_batch

Finish = Callable[[Any, Tensor], tuple[Tensor | None, Tensor | None]]
"""(layer, row of the whole batch) -> weight and bias; moves the running statistics, once."""


@dataclass(frozen=True)
class Formula:
    """synchronizes: whether the layer shares statistics with the other workers of its process group."""

    finish: Finish
    synchronizes: bool


@dataclass(frozen=True, eq=False)
class Brought:
    """A micro-batch's row, and how many values are behind each channel."""

    row: Tensor
    num_values: int


def formula_of(layer: nn.Module) -> Formula | None:
    """That of a layer alone, without what a conversion has put behind it; None for classes whose forward may do more
    than the formula."""
    return _FORMULAS.get(norm_class(layer))


def shared_by(layer: Any, formula: Formula, brought: Sequence[Brought]) -> Shared:
    """Entered by every worker that the layer shares statistics with.

    Raises: ValueError on all of them if there is one value per channel, since its variance is undefined.
    """
    group: dist.ProcessGroup | None = layer.process_group if formula.synchronizes else None
    exchanges = formula.synchronizes and layer.training and world_size(group) > 1
    row = share(layer, group, [one.row for one in brought], exchanges=exchanges)
    note_batch(layer, [one.row.detach() for one in brought])
    own = sum(one.num_values for one in brought)
    # Only a worker with at most one value can be in a group with one, so that only it reads the count back.
    if own <= 1 and row[0].item() == 1:
        raise ValueError(
            f"{type(layer).__name__}({layer.num_features}) needs more than one value per channel over all micro-batches"
            f"{' and workers' if exchanges else ''} to train, got 1. Use a larger batch, larger maps, or eval()."
        )
    return Shared(row, *formula.finish(layer, row.detach()))


def _finish_ours(layer: SyncBatchNorm, row: Tensor) -> tuple[Tensor | None, Tensor | None]:
    if layer.training and layer.track_running_stats:
        with torch.no_grad():
            update_running(row, layer._running())
    return layer.weight, layer.bias


def _finish_renorm(layer: BatchRenorm | SyncBatchRenorm, row: Tensor) -> tuple[Tensor | None, Tensor | None]:
    affine = layer.corrected_affine(*layer._corrections(of_row(row)))
    if layer.track_running_stats:
        with torch.no_grad():
            layer._update(row)
    return affine


def _finish_torchs(layer: nn.BatchNorm2d, row: Tensor) -> tuple[Tensor | None, Tensor | None]:
    if layer.training and layer.track_running_stats:
        _update_as_torch(layer, of_row(row))
    return layer.weight, layer.bias


@torch.no_grad()
def _update_as_torch(layer: Any, moments: Moments) -> None:
    if layer.num_batches_tracked is not None:
        layer.num_batches_tracked.add_(1)
    step = layer.momentum if layer.momentum is not None else 1 / layer.num_batches_tracked.double()
    if layer.running_mean is not None and layer.running_var is not None:
        for running, batch in ((layer.running_mean, moments.mean), (layer.running_var, moments.unbiased_variance)):
            running.copy_(running + step * (batch - running))


_FORMULAS: dict[type[nn.Module], Formula] = {
    nn.BatchNorm1d: Formula(_finish_torchs, synchronizes=False),
    nn.BatchNorm2d: Formula(_finish_torchs, synchronizes=False),
    nn.BatchNorm3d: Formula(_finish_torchs, synchronizes=False),
    nn.SyncBatchNorm: Formula(_finish_torchs, synchronizes=True),
    SyncBatchNorm: Formula(_finish_ours, synchronizes=True),
    BatchRenorm: Formula(_finish_renorm, synchronizes=False),
    SyncBatchRenorm: Formula(_finish_renorm, synchronizes=True),
}
