"""What every rank learns of every other."""

from __future__ import annotations

from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")


def gather(value: T, group: dist.ProcessGroup | None = None) -> list[T]:
    """`value` of every rank, in rank order, on every rank; without a process group, that of this process alone.

    Entered by every rank of the group; None: the default group.
    """
    if not dist.is_initialized():
        return [value]
    values: list[T] = [value] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values
