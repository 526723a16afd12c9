"""From shares of indices to batches of tensors, resumable at any batch."""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only
from torch.utils.data import DataLoader, Dataset, default_collate

from syncnorm.trainer.data.info import Data, Ragged, Source
from syncnorm.trainer.data.sampler import ShardedBatches, Share, share_bounds


class Batch(NamedTuple):
    """A worker's part of a global batch. data: (x, y) for built-in data. weight: see Share. is_whole: whether it is
    the batch of all workers, which one of them has to itself. micro_batch: the most samples that go through the network
    at once; 0: all do."""

    data: Any
    weight: float
    is_whole: bool = False
    micro_batch: int = 0

    @property
    def x(self) -> Tensor:
        x: Tensor = self.data[0]
        return x

    @property
    def y(self) -> Tensor:
        y: Tensor = self.data[1]
        return y

    def micro_batches(self) -> list[Batch]:
        """As few parts as its size allows, as even as possible, each with its share of the weight. An empty batch is
        one part."""
        samples = len(self.y)
        count = max(1, math.ceil(samples / self.micro_batch)) if self.micro_batch else 1
        parts = []
        for number in range(count):
            start, end = share_bounds(samples, number, count)
            weight = self.weight * (end - start) / samples if samples else self.weight
            parts.append(Batch(tree_map_only((Tensor, Ragged), partial(_cut, start, end), self.data), weight))
        return parts


class Loader:
    """Iterates over a rank's batches of one epoch and counts them.

    `state_dict` counts the batches that were handed out, not those that worker processes have read ahead; after
    `load_state_dict` the next pass continues after them. `len` is that of a whole epoch. Lightning uses these, and
    `sampler.set_epoch`.
    """

    def __init__(self, dataset: BatchDataset, sampler: ShardedBatches, *, num_workers: int, pin_memory: bool) -> None:
        self.dataset, self.sampler = dataset, sampler
        self._finished = False
        self.batch_sampler = None  # Lightning looks for it where there is a sampler
        self._loader = DataLoader(
            dataset,
            batch_size=None,
            sampler=sampler,
            collate_fn=_as_it_is,
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=num_workers > 0,
            multiprocessing_context=_forkserver() if num_workers else None,
            generator=torch.Generator(),  # a generator of its own: a pass must not draw from the one that dropout uses
        )

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        if self._finished:
            self.sampler.seek(self.sampler.epoch, 0)
        self._finished = False
        for batch in self._loader:
            self.sampler.position += 1
            # Before the yield: a caller that takes just `len` batches never reaches the end of the pass.
            self._finished = self.sampler.position == len(self)
            yield batch

    def set_epoch(self, epoch: int) -> None:
        self.sampler.set_epoch(epoch)

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.sampler.epoch, "batch": self.sampler.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.sampler.seek(state["epoch"], state["batch"])
        self._finished = False


class BatchDataset(Dataset[Batch]):
    """The batch of a Share. Augmentation is drawn from (seed, epoch, index), so it does not matter where a sample is
    read.

    An empty share gives tensors whose first dimension is 0, and no entry where samples are not stacked. micro_batch:
    see Batch.
    """

    def __init__(
        self,
        samples: Dataset[Any],
        collate: Callable[[Sequence[Any]], Any] | None,
        seed: int,
        micro_batch: int = 0,
    ) -> None:
        self._samples, self._collate, self._seed = samples, collate or collate_samples, seed
        self._micro_batch = micro_batch

    def __getitem__(self, share: Share) -> Batch:
        if share.indices:
            data = self._collate([self._read(share.epoch, index) for index in share.indices])
        else:
            data = tree_map_only((Tensor, Ragged), partial(_cut, 0, 0), self._collate([self._samples[0]]))
        return Batch(data, share.weight, micro_batch=self._micro_batch)

    def _read(self, epoch: int, index: int) -> Any:
        if isinstance(self._samples, Source) and self._samples.augments:
            return self._samples.read(index, np.random.default_rng((self._seed, epoch, index)))
        return self._samples[index]


def collate_samples(samples: Sequence[Any]) -> Any:
    """torch's default, except that a pair stays a tuple."""
    batch = default_collate(list(samples))
    return tuple(batch) if isinstance(batch, list) else batch


def train_loader(
    data: Data,
    *,
    global_batch: int,
    rank: int = 0,
    world_size: int = 1,
    seed: int = 0,
    last_batch: Literal["weight", "drop"] = "weight",
    pin_memory: bool = False,
    micro_batch: int = 0,
) -> Loader:
    """Shuffled, augmented training batches. pin_memory: for CUDA only. micro_batch: see Batch."""
    sampler = ShardedBatches(
        len(data.train),  # type: ignore[arg-type]
        global_batch=global_batch,
        rank=rank,
        world_size=world_size,
        seed=seed,
        shuffle=data.shuffle,
        last_batch=last_batch,
        groups=data.groups,
    )
    dataset = BatchDataset(data.train, data.collate, seed, micro_batch)
    return Loader(dataset, sampler, num_workers=data.num_workers, pin_memory=pin_memory)


def val_loader(
    data: Data, *, global_batch: int, rank: int = 0, world_size: int = 1, pin_memory: bool = False
) -> Loader:
    """Each validation sample exactly once over all ranks, in order, without padding; the last share may be empty."""
    sampler = ShardedBatches(
        len(data.val),  # type: ignore[arg-type]
        global_batch=global_batch,
        rank=rank,
        world_size=world_size,
        shuffle=False,
    )
    dataset = BatchDataset(data.val, data.collate, 0)
    return Loader(dataset, sampler, num_workers=data.num_workers, pin_memory=pin_memory)


def _cut(start: int, end: int, part: Tensor | Ragged) -> Tensor | Ragged:
    return Ragged(part[start:end]) if isinstance(part, Ragged) else part[start:end]


def _as_it_is(batch: Any) -> Any:
    return batch


def _forkserver() -> Any:
    # Not fork: a process forked after CUDA was initialised keeps device memory. The server imports torch once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context
