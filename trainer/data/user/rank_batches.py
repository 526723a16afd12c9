"""Which batches of an epoch a worker takes from what a user's own sampler gives. Pure."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, TypeVar

from syncnorm.trainer.data.sampler import share_bounds

LastBatch = Literal["weight", "pad", "drop"]
T = TypeVar("T")


@dataclass(frozen=True)
class Sharing:
    """How the batches of a loader are spread over the workers.

    batch_size: samples of one worker; None where the items are batches already. drop_last: whether the loader itself
    leaves out a smaller last batch. training: validation takes every sample once.
    """

    rank: int
    world_size: int
    batch_size: int | None
    drop_last: bool = False
    last_batch: LastBatch = "pad"
    training: bool = True


def rank_batches(items: Sequence[T], how: Sharing) -> Iterator[Any]:
    """This worker's batches of `items`, the samples or batches of an epoch in order.

    Training: as many for every worker. `pad` repeats items from the start and `drop` leaves some out until each has as
    many, and worker r takes every world_size-th from r on, as torch's DistributedSampler; `weight` cuts batches of all
    workers and gives each a contiguous part, the last one unevenly. Validation: every item once, so one worker may have
    a batch more; items are repeated only where there are fewer than workers.
    """
    k, size = how.world_size, how.batch_size
    if how.training and how.last_batch == "weight" and size is not None:
        for whole in chunks(iter(items), k * size, drop=how.drop_last):
            start, end = share_bounds(len(whole), how.rank, k)
            yield whole[start:end]
        return
    mine = (items[index % len(items)] for index in range(how.rank, _shared_items(len(items), how), k))
    yield from mine if size is None else chunks(mine, size, drop=how.drop_last)


def _shared_items(count: int, how: Sharing) -> int:
    """How many items all workers take together."""
    k = how.world_size
    if count == 0 or (not how.training and count >= k):
        return count
    if how.training and how.last_batch == "drop":
        return count - count % (k * (how.batch_size or 1))
    return -(-count // k) * k


@functools.lru_cache(maxsize=64)
def count_batches(items: int, how: Sharing) -> int:
    """How many batches `rank_batches` gives for so many items."""
    return sum(1 for _ in rank_batches(range(items), how))


@functools.lru_cache(maxsize=64)
def count_samples(items: int, how: Sharing) -> int:
    """How many samples these batches hold; of batches that the user's sampler makes, how many batches."""
    batches = rank_batches(range(items), how)
    return sum(1 if how.batch_size is None else len(batch) for batch in batches)


def last_shares(items: int, how: Sharing) -> list[int] | None:
    """Samples of each worker in the last batch, where `weight` spreads it unevenly; else None."""
    if not how.training or how.last_batch != "weight" or how.batch_size is None:
        return None
    rest = 0 if how.drop_last else items % (how.world_size * how.batch_size)
    if rest % how.world_size == 0:
        return None
    bounds = [share_bounds(rest, rank, how.world_size) for rank in range(how.world_size)]
    return [end - start for start, end in bounds]


def chunks(items: Iterator[T], size: int, *, drop: bool) -> Iterator[list[T]]:
    """Lists of `size` items; drop: without a shorter last one."""
    while chunk := list(islice(items, size)):
        if len(chunk) < size and drop:
            return
        yield chunk
