"""Carries rows of float64 numbers between the workers of a group: through shared memory on one host, else by gloo."""

from __future__ import annotations

import weakref
from typing import Protocol

import torch.distributed as dist
from torch import Tensor, nn

from syncnorm.norm.distributed.call_headers import Direction
from syncnorm.norm.distributed.gloo import ProcessGroupTransport
from syncnorm.norm.distributed.shared_memory import SharedMemoryTransport


class Transport(Protocol):
    """How the workers of one group exchange rows."""

    name: str
    world_size: int

    def gather(self, row: Tensor, layer: nn.Module | None, direction: Direction) -> Tensor:
        """(F,) of every worker -> (W, F) in rank order, to be read before the next call. One exchange.

        Raises ExchangeError on every worker if they are not in the same call of the same layer, and where a worker
        does not arrive within the group's timeout.
        """
        ...


_TRANSPORTS: weakref.WeakKeyDictionary[dist.ProcessGroup, Transport] = weakref.WeakKeyDictionary()


def transport_of(group: dist.ProcessGroup) -> Transport:
    """The transport of a group on the CPU, set up by all its workers together at first use.

    Shared memory where all of them see the same and have compiled kernels; SYNCNORM_SHARED_MEMORY=0 on any worker
    switches it off.
    """
    found = _TRANSPORTS.get(group)
    if found is None:
        found = SharedMemoryTransport.open(group) or ProcessGroupTransport(group)
        _TRANSPORTS[group] = found
    return found
