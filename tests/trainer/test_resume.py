"""A job that was interrupted goes on as if nothing had happened, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.norm.pool import Pool
from tests.trainer.ranks import Told, Trained, train
from trainer import checkpoints

KINDS = ["sync_batch", "batch", "sync_batch_renorm", "group", "weight"]


def spec(kind: str, **train_changes: Any) -> dict[str, Any]:
    return {
        "name": "resume",
        "model": {"name": "cnn", "init_args": {"channels": [4, 8], "dropout": 0.2}},
        # 1,438 samples make 6 batches an epoch, the last one smaller; augmentation and dropout draw random numbers.
        "data": {"name": "digits", "batch_size": 128, "init_args": {"augment": True}},
        "norm": {"kind": kind},
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4},
        "schedule": {"name": "cosine", "warmup_steps": 3},
        "train": {"epochs": 3, "checkpoint_every": {"steps": 2}} | train_changes,
        "statistics": {"every": {"steps": 5}},
        "resources": {"workers": 2},
    }


@dataclass(frozen=True)
class Undisturbed:
    """A job that ran to its end in one go; tests only read its folder."""

    root: Path
    result: Trained


@pytest.fixture(scope="module")
def undisturbed(ranks: Pool, tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[str, Any]], Undisturbed]:
    """Trains each document once for all tests of this file."""
    known: dict[str, Undisturbed] = {}

    def train_once(document: dict[str, Any]) -> Undisturbed:
        key = json.dumps(document, sort_keys=True)
        if key not in known:
            root = tmp_path_factory.mktemp("whole")
            known[key] = Undisturbed(root, ranks.run(train, 2, str(root), document)[0])
        return known[key]

    return train_once


def series(*roots: Path) -> dict[tuple[str, int], float]:
    """What MLflow gets of these attempts' spools: of each (key, step) the first value. Rates are not reproducible."""
    points: dict[tuple[str, int], float] = {}
    for root in roots:
        for line in (root / "metrics.jsonl").read_text().splitlines():
            point = json.loads(line)
            if not point["key"].startswith("throughput"):
                points.setdefault((point["key"], point["step"]), point["value"])
    return points


def newest(*roots: Path) -> str:
    found = checkpoints.newest([root / "checkpoints" for root in roots])
    assert found is not None
    return str(found.path)


Whole = Callable[[dict[str, Any]], Undisturbed]


def assert_same(whole: Undisturbed, parts: Trained, *roots: Path) -> None:
    """Final tensors, metrics and the series of the attempts in `roots` are those of `whole`."""
    expected = whole.result
    differing = [name for name, tensor in expected.state.items() if not torch.equal(tensor, parts.state[name])]
    assert differing == []
    assert parts.metrics == expected.metrics
    assert series(*roots) == series(whole.root)


@pytest.mark.parametrize("kind", KINDS)
def test_paused_in_the_middle_of_an_epoch(ranks: Pool, undisturbed: Whole, tmp_path: Path, kind: str) -> None:
    first, second = tmp_path / "1", tmp_path / "2"

    paused = ranks.run(train, 2, str(first), spec(kind), None, Told(stop_at=8))[0]
    resumed = ranks.run(train, 2, str(second), spec(kind), newest(first))[0]

    assert paused.stopped_at == 9  # agreed on one batch after it was heard
    assert resumed.stopped_at is None
    assert_same(undisturbed(spec(kind)), resumed, first, second)


@pytest.mark.parametrize(
    ("length", "stop_at"),
    [*(("epochs", step) for step in (1, 5, 6, 11, 12)), *(("steps", step) for step in (5, 6, 14, 15))],
)
def test_paused_anywhere(ranks: Pool, undisturbed: Whole, tmp_path: Path, length: str, stop_at: int) -> None:
    document = spec("sync_batch", **({"epochs": None, "steps": 15} if length == "steps" else {}))
    first, second = tmp_path / "1", tmp_path / "2"

    ranks.run(train, 2, str(first), document, None, Told(stop_at=stop_at))
    resumed = ranks.run(train, 2, str(second), document, newest(first))[0]

    assert_same(undisturbed(document), resumed, first, second)


def test_paused_while_gradients_accumulate(ranks: Pool, undisturbed: Whole, tmp_path: Path) -> None:
    document = spec("sync_batch", accumulate=2)
    first, second = tmp_path / "1", tmp_path / "2"

    paused = ranks.run(train, 2, str(first), document, None, Told(stop_at=4))[0]
    resumed = ranks.run(train, 2, str(second), document, newest(first))[0]

    assert paused.stopped_at == 5
    assert_same(undisturbed(document), resumed, first, second)


def test_killed_after_the_last_step(ranks: Pool, undisturbed: Whole, tmp_path: Path) -> None:
    whole = undisturbed(spec("sync_batch"))

    resumed = ranks.run(train, 2, str(tmp_path), spec("sync_batch"), newest(whole.root))[0]

    assert all(torch.equal(tensor, resumed.state[name]) for name, tensor in whole.result.state.items())
    assert resumed.metrics == whole.result.metrics
    assert (tmp_path / "metrics.jsonl").read_text() == ""


@pytest.mark.parametrize(
    "die_at", [7, pytest.param(3, marks=pytest.mark.chaos), pytest.param(12, marks=pytest.mark.chaos)]
)
def test_rank_killed(ranks: Pool, undisturbed: Whole, tmp_path: Path, die_at: int) -> None:
    first, second = tmp_path / "1", tmp_path / "2"

    with pytest.raises(RuntimeError, match="rank 0 of 2 died"):
        ranks.run(train, 2, str(first), spec("sync_batch"), None, Told(die_at=die_at))
    resumed = ranks.run(train, 2, str(second), spec("sync_batch"), newest(first))[0]

    assert_same(undisturbed(spec("sync_batch")), resumed, first, second)
