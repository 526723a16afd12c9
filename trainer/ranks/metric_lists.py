"""Gathers the lists that metrics keep over workers that saw a different number of batches or images.

torchmetrics (1.9) gathers a list item by item, so all workers need as many: with others gloo aborts the process, and
NCCL hangs. Validation takes every sample once, which leaves some workers with fewer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.detection.mean_ap import MeanAveragePrecision
from torchmetrics.utilities.distributed import gather_all_tensors

from syncnorm.trainer.ranks.exchange import gather

T = TypeVar("T")
_MISSING = object()


@contextmanager
def lists_of_any_length() -> Iterator[None]:
    """Within the block, metrics of the user's are computed over all items of all workers."""
    replaced = [
        (Metric, "_sync_dist", _sync(Metric._sync_dist)),
        (MeanAveragePrecision, "_gather_tuple_list", staticmethod(_gather_list)),
    ]
    kept = [vars(owner)[name] for owner, name, _ in replaced]
    try:
        for owner, name, method in replaced:
            setattr(owner, name, method)
        yield
    finally:
        for (owner, name, _), method in zip(replaced, kept, strict=True):
            setattr(owner, name, method)


def _sync(original: Any) -> Any:
    def sync(
        metric: Metric, dist_sync_fn: Any = gather_all_tensors, process_group: dist.ProcessGroup | None = None
    ) -> None:
        group = process_group or metric.process_group
        names = [name for name, reduce in metric._reductions.items() if reduce is None]
        own = {name: kept for name in names if _is_of_tensors(kept := getattr(metric, name))}
        lengths = gather({name: len(kept) for name, kept in own.items()}, group) if _has_lists(metric) else []
        if all(one == lengths[0] for one in lengths):
            original(metric, dist_sync_fn, process_group=process_group)
            return
        everyone = gather({name: [item.cpu() for item in kept] for name, kept in own.items()}, group)
        for name in own:
            setattr(metric, name, [])
        original(metric, dist_sync_fn, process_group=process_group)
        for name in own:
            found = in_turn([kept[name] for kept in everyone])
            setattr(metric, name, [item.to(metric.device) for item in found])

    return sync


def _has_lists(metric: Metric) -> bool:
    """The same on all workers, whatever they hold."""
    return any(
        reduce is None and isinstance(metric._defaults[name], list) for name, reduce in metric._reductions.items()
    )


def _is_of_tensors(kept: object) -> bool:
    return isinstance(kept, list) and all(isinstance(item, Tensor) for item in kept)


def _gather_list(own: list[Any], process_group: dist.ProcessGroup | None = None) -> list[Any]:
    return in_turn(gather(own, process_group))


def in_turn(lists: Sequence[Sequence[T]]) -> list[T]:
    """The first item of each list, then the second of each that has one, and so on, as torchmetrics orders them."""
    rounds: Any = zip_longest(*lists, fillvalue=_MISSING)
    return [item for one in rounds for item in one if item is not _MISSING]
