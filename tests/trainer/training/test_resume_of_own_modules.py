"""A job of a user's module that was stopped, or a worker of which was killed, goes on as its plan says."""

from __future__ import annotations

import itertools
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from syncnorm.trainer.training import checkpoints
from syncnorm.trainer.training.conversion import ConvertedNorms
from syncnorm.trainer.worker.findings.guarantees import resumes_exactly
from tests.helpers.norm.pool import Pool
from tests.helpers.trainer.own_module_jobs import job
from tests.helpers.trainer.ranks import RecordingReporter, TrainedModel, train

RESUMED = {
    "manual, two optimizers": ("TwoOptimizers", "Points", {}),
    "batches of dicts": ("TakesDicts", "Dicts", {}),
    "shuffled": ("Hooks", "Points", {"shuffle": True}),
    "an average of its own": ("Averages", "Points", {"shuffle": True}),
    "a schedule by step": ("Steps", "Points", {}),
    "a sampler of its own": ("Hooks", "Weighted", {}),
    "batches of its own": ("Hooks", "OwnBatches", {}),
    "metrics of an epoch": ("LogsLabels", "Points", {}),
    "objects of all kinds": ("SavesObjects", "Points", {}),
    "a stream that keeps its place": ("Hooks", "PlacedStreams", {}),
    "numbers drawn by its loaders": ("DrawsAtStart", "DrawsItsSplit", {}),
    "and a schedule that asks for its length": ("Steps", "DrawsItsSplit", {}),
}


@pytest.mark.parametrize("name", RESUMED)
@pytest.mark.parametrize(
    "stop_at",
    [
        pytest.param(2, marks=pytest.mark.chaos),  # which ends an epoch
        pytest.param(3, marks=pytest.mark.chaos),
        4,
    ],
)
def test_a_job_stopped_anywhere_ends_as_one_that_was_not(name: str, stop_at: int, ranks: Pool, tmp_path: Path) -> None:
    module, data, options = RESUMED[name]
    document = job(module, data=data, workers=2, norm={"kind": "sync_batch"})
    document["data"]["init_args"] = options
    whole = ranks.run(train, 2, str(tmp_path / "whole"), document)

    stopped = ranks.run(train, 2, str(tmp_path / "1"), document, None, RecordingReporter(stop_at=stop_at))
    newest = checkpoints.newest([tmp_path / "1" / "checkpoints"])
    assert newest is not None
    resumed = ranks.run(train, 2, str(tmp_path / "2"), document, str(newest.path))

    assert stopped[0].stopped_at is not None
    assert_same(resumed, whole)


def assert_same(resumed: list[TrainedModel], whole: list[TrainedModel]) -> None:
    for found, wanted in zip(resumed, whole, strict=True):
        assert found.metrics == wanted.metrics
        assert [path for path, tensor in wanted.state.items() if not torch.equal(tensor, found.state[path])] == []


def own(name: str, data: str = "Points", **options: Any) -> dict[str, Any]:
    document = job(name, data=data, workers=2, norm={"kind": "sync_batch"})
    document["data"]["init_args"] = options
    document["train"] = {"epochs": 2, "checkpoint_every": {"steps": 2}}
    return document


def train_and_die(
    rank: int, world_size: int, root: str, document: dict[str, Any], victim: int, place: str, call: int
) -> TrainedModel:
    """Kills rank `victim` in its `call`-th training step, before its forward or within its backward pass."""

    def prepare(_trainer: Trainer, module: LightningModule, _norms: ConvertedNorms) -> None:
        calls, step = itertools.count(1), module.training_step

        def kill() -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        def dying(*args: Any, **kwargs: Any) -> Any:
            if next(calls) == call:
                if place == "forward":
                    kill()
                layer = next(each for each in module.modules() if isinstance(each, torch.nn.Linear))
                layer.register_full_backward_hook(lambda *_: kill())
            return step(*args, **kwargs)

        if rank == victim:
            module.training_step = dying

    return train(rank, world_size, root, document, prepare=prepare)


def killed(ranks: Pool, root: Path, document: dict[str, Any], victim: int, place: str, call: int) -> str:
    """The checkpoint that is left of a job, one worker of which was killed."""
    with pytest.raises(RuntimeError, match=r"rank \d of 2 died|Connection|peer"):
        ranks.run(train_and_die, 2, str(root), document, victim, place, call)
    ranks.stop()  # the survivor may still be waiting
    newest = checkpoints.newest([root / "checkpoints"])
    assert newest is not None
    return str(newest.path)


@pytest.mark.parametrize(
    ("name", "victim", "place", "call"),
    [
        ("manual, two optimizers", 0, "backward", 5),
        ("batches of dicts", 1, "forward", 3),
        *(
            pytest.param(name, victim, place, call, marks=pytest.mark.chaos)
            for name in RESUMED
            for victim in (0, 1)
            for place in ("forward", "backward")
            for call in (3, 5, 6)
        ),
    ],
)
def test_a_job_with_a_killed_worker_ends_as_one_without(
    name: str, victim: int, place: str, call: int, ranks: Pool, tmp_path: Path
) -> None:
    module, data, options = RESUMED[name]
    document = own(module, data, **options)
    whole = ranks.run(train, 2, str(tmp_path / "whole"), document)

    left = killed(ranks, tmp_path / "1", document, victim, place, call)
    resumed = ranks.run(train, 2, str(tmp_path / "2"), document, left)

    assert_same(resumed, whole)


def test_stream_is_read_from_its_start_after_a_worker_was_killed(ranks: Pool, tmp_path: Path) -> None:
    """As the plan of the job says. Six batches make an epoch, and the fifth kills a worker after a checkpoint at 4."""
    document = own("Hooks", "Streams")
    promise = ranks.run(promise_of, 1, str(tmp_path / "plan"), document)[0]

    left = killed(ranks, tmp_path / "1", document, victim=1, place="backward", call=5)
    seen = ranks.run(batches_of, 2, str(tmp_path / "2"), document, left)[0]

    assert (promise.holds, "within an epoch it is read from its start" in promise.why) == ("partly", True)
    assert Path(left).name.endswith("4")
    assert seen == [0, 1, 2, 3, 4, 5] * 2  # the rest of the first epoch, and the second


def promise_of(rank: int, world_size: int, root: str, document: dict[str, Any]) -> Any:
    loaders: list[Any] = []
    train(rank, world_size, root, document, prepare=lambda trainer, *_: loaders.append(trainer.train_dataloader))
    return resumes_exactly(loaders[0])


def batches_of(rank: int, world_size: int, root: str, document: dict[str, Any], start: str) -> list[int]:
    """Which batches of the data this worker trains on."""
    seen: list[int] = []

    def prepare(trainer: Trainer, module: LightningModule, _norms: ConvertedNorms) -> None:
        known = [batch[0] for batch in trainer.datamodule.train_dataloader()]  # type: ignore[attr-defined]
        step = module.training_step

        def noting(batch: Any, batch_idx: int) -> Any:
            seen.append(next(number for number, x in enumerate(known) if torch.equal(x, batch[0])))
            return step(batch, batch_idx)

        module.training_step = noting

    train(rank, world_size, root, document, start, prepare=prepare)
    return seen
