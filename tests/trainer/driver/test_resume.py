"""A job that was interrupted goes on as if nothing had happened, bit for bit."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from syncnorm.norm.distributed import collectives
from syncnorm.trainer.callbacks import checkpoint
from syncnorm.trainer.data.loader import Loader
from syncnorm.trainer.reporting import metric_spool as tracking
from syncnorm.trainer.training import checkpoints, rank_state
from syncnorm.trainer.training.averaging.weight_average import WeightAverage
from syncnorm.trainer.training.task_module import TaskModule
from syncnorm.trainer.worker.recomputed_statistics import RecomputedStatistics
from tests.helpers.norm.pool import Pool
from tests.helpers.trainer.ranks import RecordingReporter, TrainedModel, train

MEASURED = (tracking.THROUGHPUT, tracking.SYNC_SHARE, tracking.SLOWEST_RANK, tracking.WAITING_SHARE)
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
    result: TrainedModel


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
            if point["key"] not in MEASURED and not point["key"].startswith("system/"):
                points.setdefault((point["key"], point["step"]), point["value"])
    return points


def rates(*roots: Path) -> list[float]:
    """The throughput of every epoch, or part of one, that these attempts told."""
    points = [json.loads(line) for root in roots for line in (root / "metrics.jsonl").read_text().splitlines()]
    return [point["value"] for point in points if point["key"] == tracking.THROUGHPUT]


def newest(*roots: Path) -> str:
    found = checkpoints.newest([root / "checkpoints" for root in roots])
    assert found is not None
    return str(found.path)


Whole = Callable[[dict[str, Any]], Undisturbed]


def assert_same(whole: Undisturbed, parts: TrainedModel, *roots: Path) -> None:
    """Final tensors, metrics and the series of the attempts in `roots` are those of `whole`."""
    expected = whole.result
    differing = [name for name, tensor in expected.state.items() if not torch.equal(tensor, parts.state[name])]
    assert differing == []
    assert parts.metrics == expected.metrics
    assert series(*roots) == series(whole.root)


@pytest.mark.parametrize("kind", KINDS)
def test_paused_in_the_middle_of_an_epoch(ranks: Pool, undisturbed: Whole, tmp_path: Path, kind: str) -> None:
    first, second = tmp_path / "1", tmp_path / "2"

    paused = ranks.run(train, 2, str(first), spec(kind), None, RecordingReporter(stop_at=8))[0]
    resumed = ranks.run(train, 2, str(second), spec(kind), newest(first))[0]

    assert paused.stopped_at == 9  # agreed on one batch after it was heard
    assert resumed.stopped_at is None
    assert_same(undisturbed(spec(kind)), resumed, first, second)


@pytest.mark.parametrize(
    ("length", "stop_at"),
    [
        *(("epochs", step) for step in (5, 6, 12)),
        *(("steps", step) for step in (6, 15)),
        *(pytest.param("epochs", step, marks=pytest.mark.chaos) for step in (1, 11)),
        *(pytest.param("steps", step, marks=pytest.mark.chaos) for step in (5, 14)),
    ],
)
def test_paused_anywhere(ranks: Pool, undisturbed: Whole, tmp_path: Path, length: str, stop_at: int) -> None:
    document = spec("sync_batch", **({"epochs": None, "steps": 15} if length == "steps" else {}))
    first, second = tmp_path / "1", tmp_path / "2"

    ranks.run(train, 2, str(first), document, None, RecordingReporter(stop_at=stop_at))
    resumed = ranks.run(train, 2, str(second), document, newest(first))[0]

    assert_same(undisturbed(document), resumed, first, second)
    assert min(rates(first, second)) > 20  # 3,000 on an idle host; since the host's start it would be below 1


def test_paused_while_gradients_accumulate(ranks: Pool, undisturbed: Whole, tmp_path: Path) -> None:
    document = spec("sync_batch", accumulate=2)
    first, second = tmp_path / "1", tmp_path / "2"

    paused = ranks.run(train, 2, str(first), document, None, RecordingReporter(stop_at=4))[0]
    resumed = ranks.run(train, 2, str(second), document, newest(first))[0]

    assert paused.stopped_at == 5
    assert_same(undisturbed(document), resumed, first, second)


def test_paused_with_statistics_that_only_some_workers_share(ranks: Pool, undisturbed: Whole, tmp_path: Path) -> None:
    document = spec("sync_batch") | {"norm": {"kind": "sync_batch", "group": 1}}
    first, second = tmp_path / "1", tmp_path / "2"

    ranks.run(train, 2, str(first), document, None, RecordingReporter(stop_at=8))
    resumed = ranks.run(train, 2, str(second), document, newest(first))

    whole = undisturbed(document)
    assert_same(whole, resumed[0], first, second)
    assert not torch.equal(resumed[0].state["features.1.running_mean"], resumed[1].state["features.1.running_mean"])


def test_paused_in_double_precision(ranks: Pool, undisturbed: Whole, tmp_path: Path) -> None:
    document = spec("sync_batch", precision="64-true")
    first, second = tmp_path / "1", tmp_path / "2"

    ranks.run(train, 2, str(first), document, None, RecordingReporter(stop_at=8))
    resumed = ranks.run(train, 2, str(second), document, newest(first))[0]

    assert_same(undisturbed(document), resumed, first, second)


@pytest.mark.parametrize(("first_on", "then_on"), [(2, 1), (1, 2)])
def test_goes_on_with_other_workers_as_if_nothing_had_happened(
    ranks: Pool, undisturbed: Whole, tmp_path: Path, first_on: int, then_on: int
) -> None:
    """To rounding (fp64), and without dropout, whose masks are drawn by rank."""
    document = spec("sync_batch", precision="64-true")
    document["model"]["init_args"]["dropout"] = 0.0
    first, second = tmp_path / "1", tmp_path / "2"

    ranks.run(train, first_on, str(first), document, None, RecordingReporter(stop_at=8))
    resumed = ranks.run(train, then_on, str(second), document, newest(first))[0]

    whole = undisturbed(document)
    torch.testing.assert_close(resumed.state, whole.result.state, rtol=1e-9, atol=1e-9)
    assert resumed.metrics == pytest.approx(whole.result.metrics, rel=1e-9)
    drift = {key for key in series(whole.root) if "/drift" in key[0]}  # of rank 0's part of the last batch
    expected, found = series(whole.root), series(first, second)
    assert found.keys() == expected.keys()
    assert {key: found[key] for key in expected.keys() - drift} == pytest.approx(
        {key: expected[key] for key in expected.keys() - drift}, rel=1e-9
    )


def test_killed_after_the_last_step(ranks: Pool, undisturbed: Whole, tmp_path: Path) -> None:
    whole = undisturbed(spec("sync_batch"))

    resumed = ranks.run(train, 2, str(tmp_path), spec("sync_batch"), newest(whole.root))[0]

    assert all(torch.equal(tensor, resumed.state[name]) for name, tensor in whole.result.state.items())
    assert resumed.metrics == whole.result.metrics
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def die_at(place: str, call: int) -> Any:
    """Patches so that this process is killed in the `call`-th pass through `place`."""
    calls = itertools.count(1)

    def die_if_due() -> None:
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)

    def before(original: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            die_if_due()
            return original(*args, **kwargs)

        return run

    def step(*args: Any) -> torch.Tensor:
        loss: torch.Tensor = training_step(*args)
        if loss.requires_grad:
            loss.register_hook(lambda _: die_if_due())
        return loss

    training_step, recompute = TaskModule.training_step, RecomputedStatistics.recompute
    return {
        "forward": lambda: mock.patch.object(TaskModule, "training_step", before(training_step)),
        "backward": lambda: mock.patch.object(TaskModule, "training_step", step),
        "exchange": lambda: mock.patch.object(collectives, "transport_of", before(collectives.transport_of)),
        "agreement": lambda: mock.patch.object(dist, "all_reduce", before(dist.all_reduce)),
        "checkpoint": lambda: mock.patch.object(checkpoint, "gather", before(checkpoint.gather)),
        "write": lambda: mock.patch.object(checkpoints, "sha256_of", before(checkpoints.sha256_of)),
        "average": lambda: mock.patch.object(WeightAverage, "update", before(WeightAverage.update)),
        "swap": lambda: mock.patch.object(WeightAverage, "exchange", before(WeightAverage.exchange)),
        "statistics": lambda: mock.patch.object(RecomputedStatistics, "recompute", before(recompute)),
    }[place]()


def train_and_die(
    rank: int, world_size: int, root: str, document: dict[str, Any], victim: int, place: str, call: int
) -> TrainedModel:
    with die_at(place, call) if rank == victim else nullcontext():
        return train(rank, world_size, root, document)


def kill_and_go_on(
    ranks: Pool, whole: Undisturbed, folder: Path, victim: int, place: str, call: int, **train_changes: Any
) -> None:
    document, first, second = spec("sync_batch", **train_changes), folder / "1", folder / "2"

    with pytest.raises(RuntimeError, match=r"rank \d of 2 died|Connection|peer"):
        ranks.run(train_and_die, 2, str(first), document, victim, place, call)
    ranks.stop()  # the survivor may still be waiting
    found = checkpoints.newest([first / "checkpoints"])
    resumed = ranks.run(train, 2, str(second), document, str(found.path) if found else None)[0]

    assert_same(whole, resumed, first, second)


def test_rank_killed_in_backward(ranks: Pool, undisturbed: Whole, tmp_path: Path) -> None:
    kill_and_go_on(ranks, undisturbed(spec("sync_batch")), tmp_path, victim=0, place="backward", call=8)


@pytest.mark.chaos
@pytest.mark.timeout(3600)
def test_rank_killed_at_sixty_random_places(ranks: Pool, undisturbed: Whole, tmp_path: Path) -> None:
    draw = random.Random(7)
    whole = undisturbed(spec("sync_batch"))
    # Passes of a whole job: 18 steps, 2 layers that exchange forward and backward, 9 checkpoints (rank 0 writes).
    passes = {"forward": 18, "backward": 18, "exchange": 36, "agreement": 18, "checkpoint": 9, "write": 18}
    for number in range(60):
        place = draw.choice(list(passes))
        victim = 0 if place == "write" else draw.randrange(2)
        kill_and_go_on(ranks, whole, tmp_path / str(number), victim, place, draw.randint(1, passes[place]))


EMA = {"kind": "ema", "decay": 0.9}


@pytest.mark.parametrize(("place", "call"), [("average", 8), ("statistics", 2), ("swap", 7)])
def test_rank_killed_while_it_averages(place: str, call: int, ranks: Pool, undisturbed: Whole, tmp_path: Path) -> None:
    whole = undisturbed(spec("sync_batch", average=EMA))

    kill_and_go_on(ranks, whole, tmp_path, victim=1, place=place, call=call, average=EMA)


@pytest.mark.chaos
@pytest.mark.timeout(3600)
def test_rank_killed_at_twenty_random_places_of_an_average(ranks: Pool, undisturbed: Whole, tmp_path: Path) -> None:
    draw = random.Random(11)
    whole = undisturbed(spec("sync_batch", average=EMA))
    # Of 18 steps; a validation and its statistics an epoch; the average goes in and out for 9 checkpoints and 3 epochs.
    passes = {
        "forward": 18,
        "backward": 18,
        "exchange": 72,
        "checkpoint": 9,
        "average": 18,
        "statistics": 3,
        "swap": 24,
    }
    for number in range(20):
        place = draw.choice(list(passes))
        victim, call = draw.randrange(2), draw.randint(1, passes[place])
        kill_and_go_on(ranks, whole, tmp_path / str(number), victim, place, call, average=EMA)


BUGS = {
    "random generators start anew": (checkpoint, "restore_random_state"),
    "the position in the data is forgotten": (Loader, "load_state_dict"),
    "statistics of each rank's own are those of rank 0": (rank_state, "restore_statistics"),
    "the schedule starts anew": (LambdaLR, "load_state_dict"),
    "the optimizer has no momentum": (SGD, "load_state_dict"),
}


def train_with_bug(
    rank: int, world_size: int, root: str, document: dict[str, Any], start: str, bug: str
) -> TrainedModel:
    owner, name = BUGS[bug]
    with mock.patch.object(owner, name, lambda *_: None):
        return train(rank, world_size, root, document, start)


@pytest.mark.parametrize("bug", BUGS)
def test_these_tests_notice_that(bug: str, ranks: Pool, undisturbed: Whole, paused: Path, tmp_path: Path) -> None:
    resumed = ranks.run(train_with_bug, 2, str(tmp_path), spec("batch"), newest(paused), bug)[0]

    with pytest.raises(AssertionError):
        assert_same(undisturbed(spec("batch")), resumed, paused, tmp_path)


@pytest.fixture(scope="module")
def paused(ranks: Pool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job paused in the middle of an epoch."""
    root = tmp_path_factory.mktemp("paused")
    ranks.run(train, 2, str(root), spec("batch"), None, RecordingReporter(stop_at=8))
    return root
