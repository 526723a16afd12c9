"""Two workers train one model: the one that a single worker with the whole batch trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from syncnorm.trainer.training import checkpoints
from tests.helpers.norm.pool import Pool
from tests.helpers.trainer.ranks import RecordingReporter, train


def spec(workers: int, **changes: Any) -> dict[str, Any]:
    return {
        "name": "two-workers",
        "model": {"name": "resnet", "init_args": {"depth": 8, "width": 4}},
        # 1,438 training samples: the last batch of an epoch is smaller, and not even divisible by two.
        "data": {"name": "digits", "batch_size": 250 // workers},
        "norm": {"kind": "sync_batch"},
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4},
        "train": {"epochs": 2, "precision": "64-true", "checkpoint_every": {"epochs": 2}},
        "resources": {"workers": workers},
    } | changes


def test_both_ranks_hold_the_same_weights_and_running_statistics(ranks: Pool, tmp_path: Path) -> None:
    first, second = ranks.run(train, 2, str(tmp_path), spec(2))

    assert any("running_var" in name for name in first.state)
    assert all(torch.equal(first.state[name], second.state[name]) for name in first.state)
    assert first.metrics == second.metrics


def test_two_workers_equal_one_with_the_large_batch(ranks: Pool, tmp_path: Path) -> None:
    two = ranks.run(train, 2, str(tmp_path / "two"), spec(2))[0]
    one = ranks.run(train, 1, str(tmp_path / "one"), spec(1))[0]

    # fp64: 12 steps of momentum SGD amplify rounding of 1e-16 by some orders, nothing more.
    for name, tensor in one.state.items():
        torch.testing.assert_close(two.state[name], tensor, rtol=1e-9, atol=1e-9)
    assert two.metrics["train/loss"] == pytest.approx(one.metrics["train/loss"], rel=1e-6)  # summed in fp32
    assert two.metrics["val/accuracy"] == one.metrics["val/accuracy"]


def test_batch_statistics_of_each_worker_alone_do_not_equal_the_large_batch(ranks: Pool, tmp_path: Path) -> None:
    local = {"norm": {"kind": "batch"}}
    two = ranks.run(train, 2, str(tmp_path / "two"), spec(2, **local))[0]
    one = ranks.run(train, 1, str(tmp_path / "one"), spec(1, **local))[0]

    assert not torch.allclose(two.state["conv1.weight"], one.state["conv1.weight"], rtol=1e-3)


def test_one_worker_goes_on_with_what_two_began(ranks: Pool, tmp_path: Path) -> None:
    whole = ranks.run(train, 2, str(tmp_path / "whole"), spec(2))[0]

    ranks.run(train, 2, str(tmp_path / "two"), spec(2), None, RecordingReporter(stop_at=8))
    newest = checkpoints.newest([tmp_path / "two" / "checkpoints"])
    assert newest is not None
    alone = ranks.run(train, 1, str(tmp_path / "one"), spec(2), str(newest.path))[0]

    # As above: the same global batches, statistics and sums, in another order.
    for name, tensor in whole.state.items():
        torch.testing.assert_close(alone.state[name], tensor, rtol=1e-9, atol=1e-9)
    assert alone.metrics["train/loss"] == pytest.approx(whole.metrics["train/loss"], rel=1e-6)
    assert alone.metrics["train/accuracy"] == whole.metrics["train/accuracy"]
