"""A user's DataLoader, shared out over the workers."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, RandomSampler, SubsetRandomSampler

from syncnorm.trainer.data.user.rank_batches import Sharing, count_batches, last_shares, rank_batches
from syncnorm.trainer.data.user.shared_loader import Workers, share

MODES = ("pad", "drop", "weight")


def batches_of_all(items: int, workers: int, size: int | None, **options: Any) -> list[list[Any]]:
    how = [Sharing(rank, workers, size, **options) for rank in range(workers)]
    return [list(rank_batches(range(items), each)) for each in how]


@given(
    items=st.integers(1, 60),
    workers=st.integers(1, 5),
    size=st.integers(1, 7),
    mode=st.sampled_from(MODES),
    drop=st.booleans(),
)
def test_every_worker_trains_on_as_many_batches(items: int, workers: int, size: int, mode: Any, drop: bool) -> None:
    of_all = batches_of_all(items, workers, size, last_batch=mode, drop_last=drop)

    counts = {len(batches) for batches in of_all}
    assert len(counts) == 1
    assert counts == {count_batches(items, Sharing(0, workers, size, drop, mode))}
    if mode != "weight":
        shapes = [[len(batch) for batch in batches] for batches in of_all]
        assert all(one == other for one, other in pairwise(shapes))
    seen = [item for batches in of_all for batch in batches for item in batch]
    if mode == "weight" and not drop:
        assert sorted(seen) == list(range(items))
    if mode == "pad" and not drop:
        assert set(seen) == set(range(items))
        assert len(seen) - items == -items % workers


@given(items=st.integers(1, 60), workers=st.integers(1, 5), size=st.integers(1, 7))
def test_validation_takes_every_sample_once(items: int, workers: int, size: int) -> None:
    of_all = batches_of_all(items, workers, size, training=False)

    seen = sorted(item for batches in of_all for batch in batches for item in batch)
    assert all(of_all), "every worker has something to validate"
    if items >= workers:
        assert seen == list(range(items))
    assert set(seen) == set(range(items))


@given(items=st.integers(1, 60), workers=st.integers(1, 5), size=st.integers(1, 7))
def test_last_shares_are_those_of_the_last_batch(items: int, workers: int, size: int) -> None:
    how = Sharing(0, workers, size, last_batch="weight")
    last = [batches[-1] for batches in batches_of_all(items, workers, size, last_batch="weight")]

    shares = last_shares(items, how)

    sizes = [len(batch) for batch in last]
    assert shares == (sizes if len(set(sizes)) > 1 else None)


@pytest.mark.parametrize("shuffle", [False, True])
def test_order_is_that_of_torchs_distributed_sampler(shuffle: bool) -> None:
    data = list(range(23))
    sampler = DistributedSampler(data, 3, 1, shuffle=True, seed=5)  # type: ignore[arg-type, var-annotated]
    sampler.set_epoch(2)
    loader: Any = DataLoader(data, 4, shuffle=shuffle)  # type: ignore[arg-type]

    share(loader, Workers(1, 3, seed=5, of_job=3), training=True, epoch=lambda: 2)

    assert [int(x) for batch in loader for x in batch] == list(sampler)
    assert len(loader) == 2


def test_loader_stays_the_users_own() -> None:
    class Mine(DataLoader[int]):
        colour = "red"

    loader: Any = Mine(list(range(9)), 2, shuffle=True)  # type: ignore[arg-type]

    found: Any = share(loader, Workers(0, 2, seed=0, of_job=2), training=True, epoch=lambda: 0)

    assert found is loader
    assert isinstance(found, Mine)
    assert (found.colour, type(found).__name__, found.batch_size) == ("red", "Mine", 2)


def test_samplers_of_any_kind_are_drawn_alike_by_all_workers() -> None:
    drawn = []
    for rank in range(2):
        torch.manual_seed(100 + rank)  # ranks draw numbers of their own
        loader: Any = DataLoader(range(40), 4, sampler=SubsetRandomSampler(range(0, 40, 2)))  # type: ignore[arg-type]
        share(loader, Workers(rank, 2, seed=0, of_job=2), training=True, epoch=lambda: 1)
        before = torch.get_rng_state()
        drawn.append([int(x) for batch in loader for x in batch])
        assert not torch.equal(before, torch.get_rng_state())  # the loader draws its base seed, as ever
    assert sorted(drawn[0] + drawn[1]) == list(range(0, 40, 2))


def test_fewer_workers_of_an_elastic_job_take_more_samples_each() -> None:
    loaders: list[Any] = [DataLoader(range(48), 4) for _ in range(2)]  # type: ignore[arg-type]
    for rank, loader in enumerate(loaders):
        share(loader, Workers(rank, 2, seed=0, of_job=4), training=True, epoch=lambda: 0)

    of_both = [[int(x) for pair in zip(*both, strict=True) for x in pair] for both in zip(*loaders, strict=True)]

    of_four: list[Any] = [DataLoader(range(48), 4) for _ in range(4)]  # type: ignore[arg-type]
    for rank, loader in enumerate(of_four):
        share(loader, Workers(rank, 4, seed=0, of_job=4), training=True, epoch=lambda: 0)
    steps = [sorted(int(x) for part in parts for x in part) for parts in zip(*of_four, strict=True)]
    assert [sorted(step) for step in of_both] == steps


def test_pass_goes_on_where_it_was_stopped() -> None:
    loader: Any = DataLoader(range(20), 3, sampler=RandomSampler(range(20), replacement=True))  # type: ignore[arg-type]
    share(loader, Workers(0, 1, seed=0, of_job=1), training=True, epoch=lambda: 0)
    torch.manual_seed(1)
    batches = iter(loader)
    first = [next(batches).tolist() for _ in range(3)]
    state = loader.state_dict()
    rest = [batch.tolist() for batch in batches]
    again: Any = DataLoader(range(20), 3, sampler=RandomSampler(range(20), replacement=True))  # type: ignore[arg-type]
    share(again, Workers(0, 1, seed=0, of_job=1), training=True, epoch=lambda: 0)
    again.load_state_dict(state)
    torch.manual_seed(2)

    resumed = [batch.tolist() for batch in again]

    assert len(first) == 3
    assert resumed == rest


def test_batch_size_that_can_not_be_given_is_refused() -> None:
    own: Any = DataLoader(range(8), batch_sampler=[[0, 1], [2, 3]])  # type: ignore[arg-type]

    with pytest.raises(ValueError, match=r"^data.batch_size must be left out where a DataLoader makes its batches"):
        share(own, Workers(0, 2, seed=0, batch_size=4, of_job=2), training=True, epoch=lambda: 0)
    with pytest.raises(ValueError, match=r"^data.last_batch: weight needs batches that the trainer cuts"):
        share(own, Workers(0, 2, seed=0, last_batch="weight", of_job=2), training=True, epoch=lambda: 0)


@pytest.mark.parametrize(("drop_last", "last_batch"), [(True, "pad"), (False, "drop")])
def test_training_without_a_batch_is_refused(drop_last: bool, last_batch: Any) -> None:
    """Lightning would end at once, and the job would report success."""
    loader: Any = DataLoader(range(3), 4, drop_last=drop_last)  # type: ignore[arg-type]

    with pytest.raises(ValueError, match=r"^the training loader must give each of 2 workers a batch"):
        share(loader, Workers(0, 2, seed=0, last_batch=last_batch, of_job=2), training=True, epoch=lambda: 0)


def test_streams_are_left_as_they_are() -> None:
    class Stream(IterableDataset[int]):
        def __iter__(self) -> Any:
            return iter(range(5))

    loader: Any = DataLoader(Stream(), 2)

    assert share(loader, Workers(1, 2, seed=0, of_job=2), training=True, epoch=lambda: 0) is loader
    assert type(loader) is DataLoader
    assert [batch.tolist() for batch in loader] == [[0, 1], [2, 3], [4]]
