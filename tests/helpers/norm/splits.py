"""How a batch is spread over workers in the tests, and how far two tensors are apart."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from syncnorm.norm.backends.dispatch import use_backend
from syncnorm.norm.distributed.shared_memory import SharedMemoryTransport
from syncnorm.norm.distributed.transport import transport_of

# Samples of each worker: alone, even, uneven, with empty workers.
SPLITS = [(7,), (4, 4), (3, 5), (8, 0), (0, 3, 4), (1, 1, 6), (2, 2, 2, 2), (5, 0, 2, 1), (0, 0, 0, 8)]


# Backend and transport: every way the same numbers can come about.
WAYS = [("fused", "shared memory"), ("fused", "gloo"), ("reference", "gloo")]


@contextmanager
def way(backend: str, transport: str) -> Iterator[None]:
    """Within it a new process group computes with this backend over this transport."""
    os.environ["SYNCNORM_SHARED_MEMORY"] = str(int(transport == "shared memory"))
    try:
        with use_backend(backend):  # type: ignore[arg-type]
            yield
            if dist.get_world_size() > 1:
                assert transport_of(dist.distributed_c10d._get_default_group()).name == transport
    finally:
        del os.environ["SYNCNORM_SHARED_MEMORY"]


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest expected magnitude."""
    assert actual.shape == expected.shape
    if expected.numel() == 0:
        return 0.0
    return float((actual.double() - expected.double()).abs().max() / expected.double().abs().max().clamp_min(1e-300))


def part(batch: Tensor, split: tuple[int, ...], rank: int) -> Tensor:
    """The samples of one worker."""
    return torch.split(batch, split)[rank]


@contextmanager
def counted() -> Iterator[Callable[[], int]]:
    """Gives the number of exchanges over the transport of the default group so far, those of the node in C++, too."""
    transport = transport_of(dist.distributed_c10d._get_default_group())
    if isinstance(transport, SharedMemoryTransport):
        before = transport._meeting.round
        yield lambda: int(transport._meeting.round - before)
        return
    gather, calls = transport.gather, []

    def noting(*args: object) -> Tensor:
        calls.append("gather")
        return gather(*args)  # type: ignore[arg-type]

    transport.gather = noting  # type: ignore[method-assign]
    try:
        yield lambda: len(calls)
    finally:
        transport.gather = gather  # type: ignore[method-assign]
