"""Carries rows of float64 numbers between the workers of a group: through shared memory on one host, else by gloo."""

from __future__ import annotations

import os
import weakref
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from norm.backends.ledger import Direction


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
        from norm.backends.process_group import ProcessGroupTransport
        from norm.backends.shared_memory import SharedMemoryTransport

        found = SharedMemoryTransport.open(group) or ProcessGroupTransport(group)
        _TRANSPORTS[group] = found
    return found


def timeout_s(group: dist.ProcessGroup) -> float:
    """How long a worker waits for the others: SYNCNORM_COLLECTIVE_TIMEOUT_S, or the group's own timeout."""
    chosen = os.environ.get("SYNCNORM_COLLECTIVE_TIMEOUT_S")
    if chosen:
        return float(chosen)
    try:
        timeout = group._get_backend(torch.device("cpu")).options._timeout
    except RuntimeError:  # a group for another device only, such as NCCL's
        timeout = dist.constants.default_pg_timeout
    return float(timeout.total_seconds())
