"""NaN and infinity anywhere, in forward or backward: left out, counted, and no weight or statistic ever takes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from syncnorm.trainer.callbacks import non_finite_gradients as guard
from tests.helpers.norm.pool import Pool
from tests.helpers.trainer.ranks import TrainedModel, train

KINDS = ["batch", "sync_batch", "batch_renorm", "sync_batch_renorm", "ghost_batch", "noisy_batch"]


def train_on_poison(rank: int, world_size: int, root: str, kind: str, steps: int, guarded: bool) -> TrainedModel:
    """`steps` steps, every second one poisoned. guarded: with the guard, which would end the job long before."""
    document: dict[str, Any] = {
        "name": "poisoned",
        "model": {"class_path": "tests.helpers.trainer.own_code.Poisoned", "init_args": {"seed": steps}},
        "data": {"name": "synthetic", "batch_size": 4, "init_args": {"shape": [1, 5, 5], "samples": 8 * steps}},
        "norm": {"kind": kind},
        "optimizer": {"name": "sgd", "lr": 0.05},
        "train": {"epochs": 1},
        "resources": {"workers": 2},
    }
    with mock.patch.object(guard, "IN_A_ROW", 10**9):
        if guarded:
            return train(rank, world_size, root, document)
        with mock.patch.object(guard, "all_finite", lambda _: True):
            return train(rank, world_size, root, document)


def skipped(root: Path) -> list[float]:
    points = [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]
    return [point["value"] for point in points if point["key"] == "train/non_finite_steps"]


def assert_unharmed(outcomes: list[TrainedModel], root: Path, steps: int) -> None:
    """Every bad step was counted, and every tensor of every rank is finite and has moved on."""
    assert skipped(root) == [float(count + 1) for count in range(steps // 2)]
    for outcome in outcomes:
        assert [name for name, tensor in outcome.state.items() if not tensor.isfinite().all()] == []


@pytest.mark.parametrize("kind", KINDS)
def test_poisoned_steps_leave_every_rank_unharmed(ranks: Pool, tmp_path: Path, kind: str) -> None:
    outcomes = ranks.run(train_on_poison, 2, str(tmp_path), kind, 20, True)

    assert_unharmed(outcomes, tmp_path, 20)


def test_the_check_notices_a_job_without_the_guard(ranks: Pool, tmp_path: Path) -> None:
    outcomes = ranks.run(train_on_poison, 2, str(tmp_path), "sync_batch", 20, False)

    with pytest.raises(AssertionError):
        assert_unharmed(outcomes, tmp_path, 20)
    assert any(not tensor.isfinite().all() for tensor in outcomes[0].state.values())


@pytest.mark.chaos
@pytest.mark.parametrize("kind", KINDS)
def test_a_thousand_poisoned_steps(ranks: Pool, tmp_path: Path, kind: str) -> None:
    outcomes = ranks.run(train_on_poison, 2, str(tmp_path), kind, 400, True)

    assert_unharmed(outcomes, tmp_path, 400)
    torch.testing.assert_close(outcomes[0].state["net.5.weight"], outcomes[1].state["net.5.weight"], rtol=0, atol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_one_bad_value_is_found_in_a_small_and_in_a_large_tensor(dtype: torch.dtype, place: int, bad: float) -> None:
    gradients = [torch.full((7, 9), 1e18).to(dtype), torch.full((guard.LARGE,), 1e30).to(dtype)]
    assert guard.all_finite(gradients)

    gradients[place].view(-1)[5] = bad

    assert not guard.all_finite(gradients)
    assert not guard.all_finite(gradients[place : place + 1])
    assert guard.all_finite(gradients[1 - place : 2 - place])


def test_infinities_of_both_signs_do_not_cancel() -> None:
    gradient = torch.zeros(guard.LARGE)
    gradient[0], gradient[-1] = float("inf"), -float("inf")

    assert not guard.all_finite([gradient])
