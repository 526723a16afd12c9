"""Process groups over which statistics are shared: all workers, the workers of a node, or blocks of n."""

from __future__ import annotations

import os
import socket
from typing import Literal

import torch.distributed as dist

GroupSpec = Literal["world", "node"] | int


def blocks(world_size: int, size: int) -> list[list[int]]:
    """Ranks in blocks of `size` neighbours.

    Raises: ValueError unless size divides world_size; a rest would share statistics with fewer workers than the others.
    """
    if size < 1 or world_size % size:
        raise ValueError(
            f"norm.group must divide the number of workers: {size} does not divide {world_size}. "
            f"Use one of {[n for n in range(1, world_size + 1) if world_size % n == 0]}, world or node."
        )
    return [list(range(start, start + size)) for start in range(0, world_size, size)]


def create_group(spec: GroupSpec) -> dist.ProcessGroup | None:
    """The group of this worker: `world` (None, as torch says), `node` (its host), or a block of n neighbouring ranks.

    Collective: every worker calls it with the same spec, once; give the result to all layers. Without torch.distributed
    the answer is None whatever the spec, since there is one worker.
    Raises: ValueError if n does not divide the number of workers.

    >>> norm.create_group("world") is None
    True
    """
    if spec == "world" or not dist.is_initialized():
        return None
    members = _by_node() if spec == "node" else blocks(dist.get_world_size(), int(spec))
    if len(members) == 1:
        return None
    mine: dist.ProcessGroup
    mine, _ = dist.new_subgroups_by_enumeration(members)  # type: ignore[no-untyped-call]
    return mine


def _by_node() -> list[list[int]]:
    """Ranks by host. torchrun and Ray tell which node a worker is on; otherwise the host's name does."""
    node = os.environ.get("GROUP_RANK") or os.environ.get("NODE_RANK") or socket.gethostname()
    nodes: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(nodes, node)
    return [[rank for rank, where in enumerate(nodes) if where == name] for name in dict.fromkeys(nodes)]
