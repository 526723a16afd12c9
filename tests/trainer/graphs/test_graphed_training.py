"""Training with a graph is bit for bit training without one. A stand-in for the CUDA graph runs each step again."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from syncnorm.trainer.ranks.rank_context import single_process_group
from syncnorm.trainer.training import checkpoints
from tests.helpers.norm.pool import Pool
from tests.helpers.trainer import few_digits, graphs
from tests.helpers.trainer.graphs import GraphedTraining
from tests.helpers.trainer.own_module_jobs import job
from tests.helpers.trainer.ranks import TrainedModel

# The jobs ask for GPUs, whose loaders pin memory.
pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning")


@pytest.fixture
def _one_rank() -> Iterator[None]:
    with single_process_group():
        yield


def digits(kind: str = "sync_batch", workers: int = 1, **train: Any) -> dict[str, Any]:
    """6 batches an epoch, the last of another size."""
    return {
        "name": "graphed",
        "model": {"name": "cnn", "init_args": {"channels": [4, 8], "dropout": 0.2}},
        "data": {"name": "digits", "batch_size": few_digits.BATCH // workers},
        "norm": {"kind": kind},
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
        "schedule": {"name": "cosine"},
        "train": {"epochs": 6, "graph": True} | train,
        "resources": {"workers": workers, "gpus_per_worker": 1},
    }


def own(name: str, workers: int = 1, **train: Any) -> dict[str, Any]:
    """13 batches an epoch, the last of another size."""
    document = job(name, workers=workers, norm={"kind": "sync_batch"}, train={"epochs": 3, "graph": True} | train)
    document["model"]["class_path"] = f"tests.helpers.trainer.graphs.{name}"
    document["data"]["init_args"] = {"samples": 100 * workers, "shuffle": True}
    document["resources"]["gpus_per_worker"] = 1
    return document


def plain(document: dict[str, Any]) -> dict[str, Any]:
    without = copy.deepcopy(document)
    del without["train"]["graph"]
    return without


def assert_same(found: TrainedModel, wanted: TrainedModel) -> None:
    assert [name for name, tensor in wanted.state.items() if not torch.equal(tensor, found.state[name])] == []
    exact = ("loss", "accuracy", "largest", "least")
    assert {name: value for name, value in found.metrics.items() if name.rpartition("/")[2].endswith(exact)} == {
        name: value for name, value in wanted.metrics.items() if name.rpartition("/")[2].endswith(exact)
    }


DOCUMENTS = {
    "renormalization, clipped, lean": digits("sync_batch_renorm", clip_grad_norm=0.5, activation_memory="lean"),
    "channels_last, averaged": digits("batch", memory_format="channels_last", average={"kind": "ema", "decay": 0.9}),
    "own module": own("Counts"),
}


@pytest.mark.usefixtures("_one_rank")
@pytest.mark.parametrize("name", DOCUMENTS)
def test_weights_statistics_and_metrics_are_those_without_a_graph(name: str, tmp_path: Path) -> None:
    document = DOCUMENTS[name]

    graphed = graphs.train(0, 1, str(tmp_path / "graphed"), document)

    assert [kind for kind, _, _ in graphed.events] == ["graph_captured"]
    assert graphed.replays >= 8
    assert_same(graphed.trained, few_digits.train(0, 1, str(tmp_path / "plain"), plain(document)))


@pytest.mark.parametrize("document", [digits(workers=2), own("Counts", workers=2)], ids=["digits", "own module"])
def test_two_ranks_replay_alike(document: dict[str, Any], ranks: Pool, tmp_path: Path) -> None:
    graphed: list[GraphedTraining] = ranks.run(graphs.train, 2, str(tmp_path / "graphed"), document)

    wanted = ranks.run(few_digits.train, 2, str(tmp_path / "plain"), plain(document))
    assert graphed[0].replays == graphed[1].replays > 0
    for found, each in zip(graphed, wanted, strict=True):
        assert_same(found.trained, each)


@pytest.mark.usefixtures("_one_rank")
@pytest.mark.parametrize("stop_at", [9, 25])
def test_a_job_that_was_stopped_ends_as_one_that_was_not(stop_at: int, tmp_path: Path) -> None:
    document = digits()
    whole = graphs.train(0, 1, str(tmp_path / "whole"), document)

    graphs.train(0, 1, str(tmp_path / "1"), document, stop_at=stop_at)
    newest = checkpoints.newest([tmp_path / "1" / "checkpoints"])
    assert newest is not None
    resumed = graphs.train(0, 1, str(tmp_path / "2"), document, str(newest.path))

    assert_same(resumed.trained, whole.trained)


@pytest.mark.usefixtures("_one_rank")
def test_a_step_is_captured_anew_when_other_layers_are_trained(tmp_path: Path) -> None:
    document = digits(epochs=8)
    document["model"]["freeze"] = [{"match": "features.0.*", "unfreeze_at": {"steps": 24}}]

    graphed = graphs.train(0, 1, str(tmp_path / "graphed"), document)

    assert [kind for kind, _, _ in graphed.events] == ["graph_captured", "graph_captured"]
    assert_same(graphed.trained, few_digits.train(0, 1, str(tmp_path / "plain"), plain(document)))


REFUSED = {
    "LogsNumbers": "logs rows as a number of Python",
    "CallsItsMetric": "calls the metric MulticlassAccuracy for its value of the batch",
    "CountsInPython": "training_step changes steps",
    "ReadsTheEpoch": "reads batch_idx, self.current_epoch",
    "HooksIntoBackward": "on_after_backward would not be called",
    "StepsItself": "steps its optimizers itself",
    "LeavesSomeOut": "some parameters get no gradient",
}


@pytest.mark.usefixtures("_one_rank")
@pytest.mark.parametrize("name", REFUSED)
def test_a_module_that_no_graph_repeats_trains_without_one_and_says_why(name: str, tmp_path: Path) -> None:
    document = own(name)

    graphed = graphs.train(0, 1, str(tmp_path / "graphed"), document)

    [(kind, message, _)] = graphed.events
    assert kind == "graph_refused" and REFUSED[name] in message
    assert graphed.replays == 0
    assert_same(graphed.trained, few_digits.train(0, 1, str(tmp_path / "plain"), plain(document)))


def _train_with_failing_capture(rank: int, world_size: int, root: str, document: dict[str, Any]) -> GraphedTraining:
    graph_of = graphs.RefusingGraph if rank == 1 else graphs.RerunGraph
    return graphs.train(rank, world_size, root, document, graph_of=graph_of)


def test_all_ranks_train_without_a_graph_if_one_can_not_capture(ranks: Pool, tmp_path: Path) -> None:
    document = digits(workers=2)

    graphed: list[GraphedTraining] = ranks.run(_train_with_failing_capture, 2, str(tmp_path / "graphed"), document)

    [(kind, message, data)] = graphed[0].events
    assert (kind, data["step"] > 11) == ("graph_refused", True)
    assert "capturing a step failed: operation not permitted when stream is capturing" in message
    wanted = ranks.run(few_digits.train, 2, str(tmp_path / "plain"), plain(document))
    for found, each in zip(graphed, wanted, strict=True):
        assert found.replays == 0
        assert_same(found.trained, each)


@pytest.mark.usefixtures("_one_rank")
def test_a_job_whose_steps_no_longer_fit_its_graph_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The dropout of the network is switched off once a step was captured."""
    monkeypatch.setattr("syncnorm.trainer.training.graphs.graphed_steps.PATIENCE", 20)

    graphed = graphs.train(0, 1, str(tmp_path), own("StopsDropout", epochs=5))

    assert [kind for kind, _, _ in graphed.events] == ["graph_captured", "graph_refused"]
    assert "none of the last 20 steps had the batch of the captured one" in graphed.events[1][1]
