from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncnorm.trainer.data.sampler import ShardedBatches, Share, share_bounds

SIZES = {"num_samples": st.integers(1, 60), "global_batch": st.integers(1, 20), "world_size": st.integers(1, 7)}


def _all_ranks(world_size: int, **settings: int | bool | str) -> list[list[Share]]:
    ranks = [ShardedBatches(rank=rank, world_size=world_size, **settings) for rank in range(world_size)]  # type: ignore[arg-type]
    return [list(rank) for rank in ranks]


@given(**SIZES)
def test_every_sample_is_taken_once_and_ranks_have_as_many_batches(
    num_samples: int, global_batch: int, world_size: int
) -> None:
    ranks = _all_ranks(world_size, num_samples=num_samples, global_batch=global_batch)

    taken = sorted(index for rank in ranks for share in rank for index in share.indices)
    assert taken == list(range(num_samples))
    assert len({len(rank) for rank in ranks}) == 1


@given(**SIZES)
def test_weights_make_the_average_over_ranks_the_mean_over_samples(
    num_samples: int, global_batch: int, world_size: int
) -> None:
    ranks = _all_ranks(world_size, num_samples=num_samples, global_batch=global_batch)

    for shares in zip(*ranks, strict=True):
        total = sum(len(share.indices) for share in shares)
        averaged = sum(
            share.weight * sum(share.indices) / len(share.indices) for share in shares if share.indices
        ) / len(shares)
        # fp64 sums of at most 20 indices
        assert averaged == pytest.approx(sum(sum(share.indices) for share in shares) / total, abs=1e-12)


@given(**SIZES, epoch=st.integers(0, 3))
def test_global_batches_do_not_depend_on_the_world_size(
    num_samples: int, global_batch: int, world_size: int, epoch: int
) -> None:
    alone = ShardedBatches(num_samples, global_batch=global_batch, seed=3)
    alone.set_epoch(epoch)
    ranks = [
        ShardedBatches(num_samples, global_batch=global_batch, seed=3, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for rank in ranks:
        rank.set_epoch(epoch)

    joined = [sum((share.indices for share in shares), ()) for shares in zip(*ranks, strict=True)]

    assert joined == [share.indices for share in alone]


@given(samples=st.integers(0, 50), world_size=st.integers(1, 9))
def test_parts_are_as_even_as_possible(samples: int, world_size: int) -> None:
    sizes = [end - start for start, end in (share_bounds(samples, rank, world_size) for rank in range(world_size))]

    assert sum(sizes) == samples
    assert max(sizes) - min(sizes) <= 1


def test_equal_parts_have_weight_one() -> None:
    batches = ShardedBatches(64, global_batch=16, rank=1, world_size=4)

    assert [share.weight for share in batches] == [1.0] * 4


@pytest.mark.parametrize("position", range(5))
def test_pass_goes_on_where_it_was_left(position: int) -> None:
    whole = ShardedBatches(50, global_batch=12, seed=1, rank=1, world_size=3)
    whole.set_epoch(2)
    resumed = ShardedBatches(50, global_batch=12, seed=1, rank=1, world_size=3)

    resumed.seek(2, position)
    resumed.set_epoch(2)

    assert list(resumed) == list(whole)[position:]


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    def order(seed: int, epoch: int) -> tuple[int, ...]:
        batches = ShardedBatches(100, global_batch=100, seed=seed)
        batches.set_epoch(epoch)
        return next(iter(batches)).indices

    orders = {order(seed, epoch) for seed in (0, 1) for epoch in (0, 1)}

    assert len(orders) == 4
    assert order(0, 1) in orders


def test_dropping_leaves_out_the_smaller_last_batch_only() -> None:
    kept = ShardedBatches(10, global_batch=4, last_batch="drop", shuffle=False)

    assert [share.indices for share in kept] == [(0, 1, 2, 3), (4, 5, 6, 7)]


def test_dropping_everything_is_refused() -> None:
    with pytest.raises(ValueError, match=r"data.last_batch: drop leaves no batch, for 3 samples do not fill one of 4"):
        ShardedBatches(3, global_batch=4, last_batch="drop")


@given(**SIZES, epoch=st.integers(0, 3), data=st.data())
def test_groups_fill_batches_of_their_own_and_every_sample_is_still_taken_once(
    num_samples: int, global_batch: int, world_size: int, epoch: int, data: st.DataObject
) -> None:
    groups = data.draw(st.lists(st.integers(0, 2), min_size=num_samples, max_size=num_samples))
    settings = {"global_batch": global_batch, "seed": 3, "groups": groups}
    ranks = [ShardedBatches(num_samples, rank=rank, world_size=world_size, **settings) for rank in range(world_size)]
    for rank in ranks:
        rank.set_epoch(epoch)

    batches = [sum((share.indices for share in shares), ()) for shares in zip(*ranks, strict=True)]

    assert sorted(index for batch in batches for index in batch) == list(range(num_samples))
    of_one_group = sum(groups.count(group) // global_batch for group in set(groups))
    assert all(len({groups[index] for index in batch}) == 1 for batch in batches[:of_one_group])


def test_batches_of_groups_come_in_an_order_of_their_own_each_epoch() -> None:
    sampler = ShardedBatches(40, global_batch=4, groups=[index % 2 for index in range(40)])
    first = [share.indices[0] % 2 for share in sampler]
    sampler.set_epoch(1)

    assert sorted(first) != first
    assert [share.indices[0] % 2 for share in sampler] != first
