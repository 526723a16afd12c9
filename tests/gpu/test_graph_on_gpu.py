"""train.graph on a CUDA device: what the stand-in shows on CPUs, with a real graph on NCCL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from syncnorm.trainer.ranks.rank_context import RankContext
from syncnorm.trainer.training import checkpoints
from tests.helpers.trainer.ranks import PoolEnvironment, RecordingReporter, TrainedModel, train

pytestmark = [
    pytest.mark.usefixtures("nccl", "_deterministic"),
    # The stream of DDP's own hooks is another one than that of the capture, which torch 2.11 remarks on.
    pytest.mark.filterwarnings("ignore:.*AccumulateGrad node's stream:UserWarning"),
]


@pytest.fixture
def _deterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """cuDNN may otherwise pick kernels that add in any order."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    yield


def document(kind: str = "sync_batch", *, graph: bool = True, **train_changes: Any) -> dict[str, Any]:
    return {
        "name": "gpu",
        "model": {"name": "cnn", "init_args": {"channels": [8, 16], "dropout": 0.2}},
        "data": {"name": "digits", "batch_size": 128},
        "norm": {"kind": kind},
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
        "train": {"epochs": 4, "graph": graph} | train_changes,
        "resources": {"workers": 1, "gpus_per_worker": 1},
    }


def run(root: Path, job: dict[str, Any], told: RecordingReporter | None = None, **how: Any) -> TrainedModel:
    where = RankContext(0, 1, torch.device("cuda", 0), PoolEnvironment(0, 1))
    return train(0, 1, str(root), job, told=told, where=where, **how)


def kinds(told: RecordingReporter) -> list[str]:
    return [kind for kind, _, _ in told.events if kind.startswith("graph_")]


def assert_same(found: TrainedModel, wanted: TrainedModel) -> None:
    assert [name for name, tensor in wanted.state.items() if not torch.equal(tensor, found.state[name])] == []


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "64-true"])
@pytest.mark.parametrize("kind", ["sync_batch", "batch", "group"])
def test_trains_to_the_bits_of_training_without_a_graph(tmp_path: Path, precision: str, kind: str) -> None:
    told = RecordingReporter()

    graphed = run(tmp_path / "graphed", document(kind, precision=precision), told)

    assert kinds(told) == ["graph_captured"]
    assert_same(graphed, run(tmp_path / "plain", document(kind, graph=False, precision=precision)))


@pytest.mark.usefixtures("exchanging")
def test_exchange_of_statistics_is_captured(tmp_path: Path) -> None:
    told = RecordingReporter()

    graphed = run(tmp_path / "graphed", document(), told)

    assert kinds(told) == ["graph_captured"]
    assert_same(graphed, run(tmp_path / "plain", document(graph=False)))


def test_channels_last_and_averaged_weights_train_alike(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"memory_format": "channels_last", "average": {"kind": "ema", "decay": 0.9}}

    graphed = run(tmp_path / "graphed", document(**changes))

    assert_same(graphed, run(tmp_path / "plain", document(graph=False, **changes)))


def test_resumed_job_ends_as_one_that_was_not_stopped(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", document())

    run(tmp_path / "cut", document(), RecordingReporter(stop_at=30))
    newest = checkpoints.newest([tmp_path / "cut" / "checkpoints"])
    assert newest is not None

    assert_same(run(tmp_path / "resumed", document(), resume_from=str(newest.path)), whole)


def test_step_that_waits_for_the_device_trains_without_a_graph(tmp_path: Path) -> None:
    """A momentum of None reads the number of batches from the device."""
    told = RecordingReporter()
    job = document("batch") | {"norm": {"kind": "batch", "momentum": None}}
    plain = document(graph=False) | {"norm": job["norm"]}

    graphed = run(tmp_path / "graphed", job, told)

    assert kinds(told) == ["graph_refused"]
    assert_same(graphed, run(tmp_path / "plain", plain))
