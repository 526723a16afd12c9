"""What a user gets wrong ends in the right reason, with a message that says what to change, on the job itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from ray.train import ControllerError, WorkerGroupError

from syncnorm.trainer.contract.failure import FailureReason
from syncnorm.trainer.contract.protocol import Result
from syncnorm.trainer.driver import main
from syncnorm.trainer.failure_classifier import Failure
from syncnorm.trainer.storage.attempt_layout import AttemptFolders
from syncnorm.trainer.worker import worker
from tests.helpers.norm.pool import Pool
from tests.helpers.trainer.on_ray import drive
from tests.helpers.trainer.ranks import launch_of, rank_context

OWN = "tests.helpers.trainer.own_code."
DIGITS = {"name": "digits", "batch_size": 64}


def mistaken(how: str, *ranks: int) -> dict[str, Any]:
    return {"class_path": OWN + "Mistaken", "init_args": {"how": how, "ranks": list(ranks)}}


# name: (model, data, reason, what the message says)
MISTAKES: dict[str, tuple[dict[str, Any], dict[str, Any], str, list[str]]] = {
    "class not found": (
        {"class_path": OWN + "Nett"},
        DIGITS,
        "user_error",
        ["model.class_path must name a class or a function", "no 'Nett'", "Check the spelling"],
    ),
    "module not found": (
        {"class_path": "nowhere.Net"},
        DIGITS,
        "user_error",
        ["model.class_path: there is no module 'nowhere'", "upload the package as `code`"],
    ),
    "wrong init_args": (
        {"class_path": OWN + "Net", "init_args": {"width": 3, "hight": 3}},
        DIGITS,
        "user_error",
        ["model.init_args must fit", "there is no argument 'hight'"],
    ),
    "a step that raises": (
        mistaken("raises", 0, 1),
        DIGITS,
        "user_error",
        ["KeyError: 'wavelets'", "Change it and submit again"],
    ),
    "loss is NaN": (
        mistaken("nan"),
        DIGITS,
        "non_finite",
        ["gradients must be finite, but 3 of 3 steps", "net.1.weight", "Lower optimizer.lr"],
    ),
    "data of the wrong shape": (
        {"class_path": OWN + "plain_net"},
        {"name": "synthetic", "batch_size": 8, "init_args": {"shape": [3, 8, 8], "samples": 64}},
        "user_error",
        ["must take samples of shape (3, 8, 8), but layer 1 (Linear) can't take (2, 192)", "data.init_args"],
    ),
    "another number of classes": (
        {"class_path": OWN + "plain_net"},
        {"name": "synthetic", "batch_size": 8, "init_args": {"shape": [1, 8, 8], "samples": 64, "num_classes": 7}},
        "user_error",
        ["class scores of shape (2, 7), got (2, 10)", "as many outputs"],
    ),
    "a last batch of one value": (
        {"class_path": OWN + "plain_net"},
        {"name": "synthetic", "batch_size": 8, "init_args": {"shape": [1, 8, 8], "samples": 33}},
        "user_error",
        ["The last batch of an epoch has 1 of 16 samples", "2: ", "Set data.last_batch: drop"],
    ),
    "a loss that gathers shares of different sizes": (
        {"class_path": OWN + "Gathers"},
        {
            "name": "synthetic",
            "batch_size": 8,
            "last_batch": "weight",
            "init_args": {"shape": [1, 8, 8], "samples": 35},
        },
        "user_error",
        ["Gathers.training_step exchanges tensors between workers", "gives them 2, 1", "Leave data.last_batch out"],
    ),
    "out of memory": (
        mistaken("hogs", 0, 1),
        DIGITS,
        "out_of_memory",
        ["can't allocate memory", "Lower data.batch_size"],
    ),
    "data that is not there": (
        {"name": "cnn"},
        {"name": "image_folder", "batch_size": 4, "init_args": {"root": "/nowhere/at/all"}},
        "data_missing",
        ["data.init_args.root", "/nowhere/at/all", "Check the path"],
    ),
}


def document(name: str) -> dict[str, Any]:
    model, data, _, _ = MISTAKES[name]
    return {"name": name, "model": model, "data": data, "train": {"steps": 6}, "resources": {"workers": 2}}


def work(rank: int, world_size: int, root: str) -> None:
    """All that a worker does; there is no MLflow to wait for."""
    with mock.patch.object(worker, "MLFLOW_PATIENCE_S", 0.0):
        worker.train_at(rank_context(rank, world_size), {"folder": root, "resume_from": None, "patience_s": 0.0})


def assert_told(result: Result, name: str) -> None:
    _, _, reason, texts = MISTAKES[name]
    assert (result.outcome, result.reason) == ("failed", reason), result.message
    assert [text for text in texts if text not in result.message] == [], result.message
    assert result.traceback is not None
    assert "Traceback" in result.traceback


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_told_with_its_remedy(ranks: Pool, tmp_path: Path, name: str) -> None:
    launch, folders = launch_of(document(name)), AttemptFolders(tmp_path)
    folders.launch.write_text(launch.model_dump_json())

    outcomes = ranks.outcomes(work, 2, str(tmp_path))
    result = main._failed(launch, main._why(launch, folders, WorkerGroupError("", {})))

    assert not any(ok for ok, _, _ in outcomes)
    assert_told(result, name)


def test_mistake_that_rank_0_alone_finds_ends_the_others_at_once(ranks: Pool, tmp_path: Path) -> None:
    launch, folders = launch_of(document("a last batch of one value")), AttemptFolders(tmp_path)
    folders.launch.write_text(launch.model_dump_json())

    ranks.outcomes(work, 2, str(tmp_path))

    found = [Failure.model_validate_json(folders.failure(rank).read_bytes()) for rank in (0, 1)]
    assert [failure.secondary for failure in found] == [False, True]
    assert "all 2 ranks must be ready to train, but rank 0 has failed" in found[1].message


def test_workers_that_could_not_be_brought_together_are_told_in_rays_words(tmp_path: Path) -> None:
    launch, folders = launch_of(document("a step that raises")), AttemptFolders(tmp_path)
    error = ControllerError(RuntimeError("no address for rank 1"))

    result = main._failed(launch, main._why(launch, folders, error))

    assert result.reason == FailureReason.WORKER_LOST
    assert result.message.startswith("Ray Train could not start the workers: no address for rank 1")


@pytest.mark.chaos
@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_of_a_real_job_is_told_with_its_remedy(ray_address: str, tmp_path: Path, name: str) -> None:
    result = drive(ray_address, tmp_path, document(name))

    assert_told(result, name)


@pytest.mark.chaos
def test_mistake_on_one_rank_is_that_of_the_job(ray_address: str, tmp_path: Path) -> None:
    job = document("a step that raises") | {"model": mistaken("raises", 1)}

    result = drive(ray_address, tmp_path, job)

    assert_told(result, "a step that raises")


@pytest.mark.chaos
def test_rank_that_leaves_without_a_word_is_named(ray_address: str, tmp_path: Path) -> None:
    job = document("class not found") | {"model": mistaken("leaves", 1)}

    result = drive(ray_address, tmp_path, job)

    assert result.outcome == "failed"
    assert result.reason in ("worker_lost", "user_error"), result.message
    assert "rank 1" in result.message or "SystemExit" in result.message
