from __future__ import annotations

from dataclasses import astuple

import pytest
import torch
from torch import Tensor

from syncnorm.norm.statistics.moments import Moments, measure, merge, synced_moments
from tests.helpers.norm.pool import Pool
from tests.helpers.norm.splits import SPLITS, part, relative_error


def _of_split(rank: int, world_size: int, x: Tensor, split: tuple[int, ...]) -> Moments:
    return synced_moments(part(x, split, rank))


@pytest.mark.parametrize("split", SPLITS)
def test_any_split_gives_the_moments_of_the_whole_batch(pool: Pool, split: tuple[int, ...]) -> None:
    x = torch.randn(sum(split), 3, 4, 5, dtype=torch.float64) * 3 + 7

    results = pool.run(_of_split, len(split), x, split)

    for moments in results:
        assert moments.count == sum(split) * 20
        assert relative_error(moments.mean, x.mean((0, 2, 3))) < 1e-14
        assert relative_error(moments.biased_variance, x.var((0, 2, 3), correction=0)) < 1e-13


def test_large_mean_costs_no_accuracy_in_float64(pool: Pool) -> None:
    x = torch.randn(8, 3, 50, dtype=torch.float64) + 1e6

    moments = pool.run(_of_split, 2, x, (3, 5))[0]

    # Sums of squares would be off by 1e-4 here; centred ones lose only what the spacing of numbers near 1e6 costs.
    assert relative_error(moments.biased_variance, x.var((0, 2), correction=0)) < 1e-9


def test_variance_holds_to_1e_4_at_a_mean_of_1e4_stds_in_float32(pool: Pool) -> None:
    x = torch.randn(8, 16, 14, 14) + 1e4

    moments = pool.run(_of_split, 3, x, (1, 4, 3))[0]

    assert relative_error(moments.biased_variance, x.double().var((0, 2, 3), correction=0)) < 1e-4


def test_mask_counts_only_what_it_lets_through() -> None:
    x = torch.randn(4, 3, 6, dtype=torch.float64)
    mask = torch.rand(4, 6) > 0.4
    kept = x.transpose(1, 2)[mask]
    x[~mask.unsqueeze(1).expand_as(x)] = float("nan")  # padding may hold anything

    moments = synced_moments(x, weights=mask)

    assert moments.count == len(kept)
    torch.testing.assert_close(moments.mean, kept.mean(0))
    torch.testing.assert_close(moments.unbiased_variance, kept.var(0))


def test_whole_number_weights_equal_repetition() -> None:
    x = torch.randn(3, 2, 4, dtype=torch.float64)
    repeats = torch.tensor([1, 3, 2])

    moments = synced_moments(x, weights=repeats.view(3, 1))

    repeated = measure(x.repeat_interleave(repeats, 0))
    torch.testing.assert_close(astuple(moments), astuple(repeated))


def test_empty_everywhere_has_count_zero_and_no_nan() -> None:
    moments = synced_moments(torch.zeros(0, 3, 4))

    assert moments.count == 0
    assert not moments.mean.any()
    assert not moments.biased_variance.any()


def test_merge_ignores_empty_parts() -> None:
    part = measure(torch.randn(5, 3, dtype=torch.float64))
    empty = measure(torch.zeros(0, 3, dtype=torch.float64))

    merged = merge(*(torch.stack(pair) for pair in zip(astuple(part), astuple(empty), strict=True)))

    torch.testing.assert_close(astuple(merged), astuple(part))


@pytest.mark.parametrize("weighted", [False, True])
def test_derivatives_to_second_order(weighted: bool) -> None:
    x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(4, 3, dtype=torch.float64) if weighted else None

    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        moments = synced_moments(x, weights=weights)
        return moments.mean, moments.m2

    assert torch.autograd.gradcheck(both, x)
    assert torch.autograd.gradgradcheck(both, x)


def _gradients(rank: int, world_size: int, x: Tensor, split: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    mine = part(x, split, rank).clone().requires_grad_()
    moments = synced_moments(mine)
    # Every worker's loss is its own function of the shared statistics.
    loss = (rank + 1) * (moments.mean.sin() + moments.m2.log()).sum()
    (first,) = torch.autograd.grad(loss, mine, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), mine)
    return first.detach(), second


@pytest.mark.parametrize("split", [(3, 5), (0, 3, 4)])
def test_gradients_of_all_workers_losses_meet_in_every_input(pool: Pool, split: tuple[int, ...]) -> None:
    x = torch.randn(sum(split), 2, 3, dtype=torch.float64)
    whole = x.clone().requires_grad_()
    moments = synced_moments(whole)
    total = sum(range(1, len(split) + 1)) * (moments.mean.sin() + moments.m2.log()).sum()
    (first,) = torch.autograd.grad(total, whole, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), whole)

    results = pool.run(_gradients, len(split), x, split)

    assert relative_error(torch.cat([first for first, _ in results]), first.detach()) < 1e-12
    assert relative_error(torch.cat([second for _, second in results]), second) < 1e-12
