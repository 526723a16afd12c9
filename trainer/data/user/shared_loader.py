"""A user's DataLoader, shared out over the workers and resumable at any batch, without another one in its place."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from syncnorm.trainer.data.user.own_state import add_base, has_own_state, resume_by_own_state
from syncnorm.trainer.data.user.rank_batches import (
    LastBatch,
    Sharing,
    chunks,
    count_batches,
    count_samples,
    last_shares,
    rank_batches,
)
from syncnorm.trainer.random_state import kept_random_state, random_state, seeded, with_random_state


@dataclass(frozen=True)
class Workers:
    """This worker among the others, and what the spec says about batches.

    of_job: workers that the job asks for. An elastic one may have fewer now, and then each takes more samples, so that
    the batch of all of them stays as large. With one, samplers draw their numbers as ever. batch_size: samples of one
    of those workers in place of the loader's own; None: the loader's. joined: micro-batches of so many samples that
    training is given as one batch.
    """

    rank: int
    world_size: int
    seed: int
    last_batch: LastBatch = "pad"
    batch_size: int | None = None
    of_job: int = 0
    joined: int = 1


def share(
    loader: object,
    workers: Workers,
    *,
    training: bool,
    epoch: Callable[[], int],
    taken: Callable[[], int] | None = None,
) -> object:
    """`loader` itself, made to give this worker its share of every pass and to continue where it was stopped.

    With several workers the order is drawn from the seed and the epoch, as torch's DistributedSampler does it or by
    the user's own sampler, so that all workers know it; torch's samplers always shuffle in training then, as in
    Lightning. `epoch` tells the epoch when a pass begins, and `taken` how many batches of it training has begun with,
    which may be fewer than it has read; None: as many. See `rank_batches` for the shares.
    Not shared out: anything but a DataLoader, and streams (IterableDataset). One with a state of its own (`state_dict`)
    resumes by that. Samplers that know of ranks share out by themselves.

    Raises: ValueError if workers.batch_size or last_batch `weight` is asked of a loader that makes its own batches, or
    if training would have no batch at all.
    """
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        _require_own_batches(loader, workers, training=training)
        return resume_by_own_state(loader, taken) if training and has_own_state(loader) else loader
    if not _is_cut_here(loader):
        _require_own_batches(loader, workers, training=training)
    order = Order(loader, workers, training=training, epoch=epoch)
    if 0 in (order.uneven_shares() or ()):
        raise ValueError(
            "data.last_batch: weight leaves a worker without a sample in the last batch of an epoch. Leave last_batch "
            "out, or choose another data.batch_size."
        )
    if training and order.is_sized and len(order) == 0:
        raise ValueError(
            f"the training loader must give each of {workers.world_size} workers a batch, but the samples do not fill "
            "one. Use a smaller batch, or leave out data.last_batch: drop and the loader's drop_last."
        )
    # Its class, because a DataLoader can't be given another sampler, and one made anew would not be the user's.
    keeps_state = has_own_state(loader) and hasattr(loader.dataset, "state_dict")
    add_base(loader, _Shared if keeps_state else _Resumable)
    loader.order, loader.taken = order, taken  # type: ignore[attr-defined]
    return resume_by_own_state(loader, taken) if training and keeps_state else loader


def _is_cut_here(loader: DataLoader[Any]) -> bool:
    """Whether its batches are plain cuts of what a sampler gives: by torch's BatchSampler, or torchdata's."""
    kind = type(loader.batch_sampler)
    return kind is BatchSampler or (issubclass(kind, BatchSampler) and kind.__module__.startswith("torchdata."))


def _require_own_batches(loader: object, workers: Workers, *, training: bool) -> None:
    name = type(loader).__name__
    if workers.batch_size not in (None, getattr(loader, "batch_size", None)):
        raise ValueError(
            f"data.batch_size must be left out where a {name} makes its batches itself, got {workers.batch_size}. "
            "Set the size in your data module."
        )
    if training and workers.joined > 1:
        raise ValueError(
            "train.accumulate_statistics: exact needs batches that the trainer cuts, so that it can put those of a "
            f"step together, but a {name} makes its batches itself. Let the loader make larger ones, call "
            "norm.accumulated in your training_step, and leave train.accumulate out."
        )
    if training and workers.last_batch == "weight":
        raise ValueError(
            f"data.last_batch: weight needs batches that the trainer cuts, but a {name} makes its batches itself. "
            "Leave last_batch out."
        )


class Order(Iterable[Any]):
    """What a DataLoader reads next: this worker's batches of indices, from batch `start` of epoch `of_epoch` on."""

    def __init__(self, loader: DataLoader[Any], workers: Workers, *, training: bool, epoch: Callable[[], int]) -> None:
        cuts = _is_cut_here(loader)
        self._source: Any = loader.sampler if cuts or loader.batch_sampler is None else loader.batch_sampler
        self._seed, self._epoch = workers.seed, epoch
        is_shared = any(map(_knows_ranks, (self._source, loader.sampler)))
        self.how = Sharing(
            rank=0 if is_shared else workers.rank,
            world_size=1 if is_shared else workers.world_size,
            batch_size=_batch_size(loader, workers) * (workers.joined if training else 1) if cuts else None,
            drop_last=bool(loader.drop_last),
            last_batch=workers.last_batch,
            training=training,
        )
        self.is_torchs = type(self._source).__module__.startswith(("torch.utils.data", "torchdata."))
        """Whether the order is known to depend on the seed and the epoch alone."""
        self._is_alone = workers.of_job == 1
        self.start = 0
        self.of_epoch = -1
        self.drawing: dict[str, Any] | None = None
        """The numbers that the pass under way was drawn with, where the job has one worker."""
        self.drawn_from: dict[str, Any] | None = None
        """Those that the next pass is to be drawn with, where it continues one of an earlier attempt."""

    def __len__(self) -> int:
        """Batches of a whole pass. Raises: TypeError if the user's sampler does not know its length."""
        return count_batches(len(self._source), self.how)

    def begin(self) -> None:
        """Let a pass begin: where `seek` says, if that is in this epoch."""
        epoch = self._epoch()
        if epoch != self.of_epoch:
            self.start, self.drawn_from = 0, None
        self.of_epoch = epoch

    def seek(self, epoch: int, batch: int, drawn_from: dict[str, Any] | None) -> None:
        self.of_epoch, self.start, self.drawn_from = epoch, batch, drawn_from

    def apart(self, dataset: Any) -> Order:
        """The order of an epoch for a pass of its own, which draws no numbers that training would and leaves its
        sampler where it is."""
        other = copy.copy(self)
        other._source = copy.deepcopy(self._source, {id(dataset): dataset})
        other._is_alone, other.of_epoch, other.start = False, 0, 0
        return other

    def first(self) -> Any:
        """What a worker might read first. Draws no numbers that training would."""
        source = range(len(self._source)) if self.how.batch_size is not None else self._source
        return next(rank_batches(list(source), self.how) if self.is_sized else self._shared_stream())

    @property
    def is_sized(self) -> bool:
        return hasattr(self._source, "__len__")

    def uneven_shares(self) -> list[int] | None:
        """Samples of each worker in the last batch; None where all have as many."""
        return last_shares(len(self._source), self.how) if self.how.last_batch == "weight" else None

    def samples(self) -> int | None:
        """What all workers together train on in an epoch, repeated samples included; None: unknown."""
        if self.how.batch_size is None or not self.is_sized:
            return None
        return len(self._source) + self.repeated_items()

    def own_samples(self) -> int | None:
        """What this worker reads in a whole pass; None: unknown."""
        return count_samples(len(self._source), self.how) if self.is_sized else None

    def repeated_items(self) -> int:
        """Samples, or batches of the user's own, that an epoch of training has twice so that all have as many."""
        if not self.how.training or self.how.last_batch != "pad" or not self.is_sized:
            return 0
        return -len(self._source) % self.how.world_size

    def weight(self, batch: int) -> float:
        """Factor for the mean loss of this worker's part of a batch, as in data.sampler.Share."""
        shares = self.uneven_shares()
        if shares is None or batch < len(self) - 1:
            return 1.0
        return self.how.world_size * shares[self.how.rank] / sum(shares)

    def __iter__(self) -> Iterator[Any]:
        return self._batches(self.start)

    def _batches(self, start: int) -> Iterator[Any]:
        batches = rank_batches(self._drawn(), self.how) if self.is_sized else self._shared_stream()
        yield from itertools.islice(batches, start, None)

    def _drawn(self) -> list[Any]:
        """The whole epoch, alike on every worker."""
        source, seed = self._source, self._seed + self.of_epoch
        if self._is_alone:
            return self._drawn_as_before() if self.drawn_from else self._drawn_by_sampler()
        if isinstance(source, (RandomSampler, SequentialSampler)) and self.is_torchs and _takes_each_once(source):
            if not self.how.training and isinstance(source, SequentialSampler):
                return list(source)
            generator = torch.Generator()
            generator.manual_seed(seed)
            return torch.randperm(len(source), generator=generator).tolist()  # type: ignore[no-any-return]
        with seeded(seed):
            if isinstance(given := getattr(source, "generator", None), torch.Generator):
                given.manual_seed(seed)
            return list(itertools.islice(source, len(source)))

    def _drawn_by_sampler(self) -> list[Any]:
        given = getattr(self._source, "generator", None)
        self.drawing = {"random": random_state(), "own": given.get_state() if given is not None else None}
        return list(itertools.islice(self._source, len(self._source)))

    def _drawn_as_before(self) -> list[Any]:
        """The epoch that an earlier attempt began with these numbers."""
        self.drawing, self.drawn_from = self.drawn_from, None
        assert self.drawing is not None
        with with_random_state(self.drawing["random"]):
            if self.drawing["own"] is not None:
                self._source.generator.set_state(self.drawing["own"])
            return list(itertools.islice(self._source, len(self._source)))

    def _shared_stream(self) -> Iterator[Any]:
        """Of a sampler that may never end: whole rounds of one batch for each worker."""
        how = self.how
        items = iter(self._source)
        batches = items if how.batch_size is None else chunks(items, how.batch_size, drop=True)
        while len(of_all := list(itertools.islice(batches, how.world_size))) == how.world_size:
            yield of_all[how.rank]


def _takes_each_once(sampler: Any) -> bool:
    return len(sampler) == len(sampler.data_source)


def _batch_size(loader: DataLoader[Any], workers: Workers) -> int:
    own = workers.batch_size or loader.batch_size
    assert own is not None  # a BatchSampler has one
    return math.ceil(own * (workers.of_job or workers.world_size) / workers.world_size)


def _knows_ranks(sampler: object) -> bool:
    """Whether it shares its samples out over the workers by itself."""
    each = (sampler, getattr(sampler, "sampler", None))
    return any(
        isinstance(one, DistributedSampler) or (hasattr(one, "num_replicas") and hasattr(one, "rank")) for one in each
    )


class _Shared(DataLoader[Any]):
    """Only its samples are shared out."""

    order: Order
    taken: Callable[[], int] | None

    @property
    def _index_sampler(self) -> Any:
        return self.order

    def __iter__(self) -> Any:
        self.order.begin()
        return super().__iter__()


class _Resumable(_Shared):
    """Counts the batches that training takes; after `load_state_dict` the pass of that epoch continues after them."""

    handed_out = 0

    def __iter__(self) -> Any:
        self.order.begin()
        # A pass that began before the stop drew its numbers then.
        with kept_random_state() if self.order.start else nullcontext():
            return self._counted(super().__iter__())

    def _counted(self, batches: Iterator[Any]) -> Iterator[Any]:
        self.handed_out = self.order.start
        self.order.start = 0  # for the next pass
        for batch in batches:
            self.handed_out += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        taken = self.handed_out if self.taken is None else min(self.handed_out, self.taken())
        return {"epoch": self.order.of_epoch, "batch": taken, "drawn_from": self.order.drawing}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.order.seek(state["epoch"], state["batch"], state["drawn_from"])
