"""LightningModules by the usual habits, uploaded as they are, as jobs of two workers on the real service."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from syncnorm.service.cli.code_folder import pack
from syncnorm.service.client.client import Client, ClientError
from tests.helpers.trainer import own_modules
from tests.stack.conftest import finished

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]

DIGITS = {"name": "digits", "batch_size": 32}
BORING = "lightning.pytorch.demos.boring_classes"

RUN: dict[str, tuple[str, dict[str, Any], str]] = {
    "every hook": ("own_modules.Digits", DIGITS, "certified"),
    "a schedule by step": ("own_modules.Steps", {"class_path": "own_modules.Points"}, "certified"),
    "a schedule by its own metric": ("own_modules.Plateaus", {"class_path": "own_modules.Points"}, "certified"),
    "a schedule by our metric": ("own_modules.PlateausByOurName", {"class_path": "own_modules.Points"}, "certified"),
    "text and pictures": ("own_modules.LogsFiles", DIGITS, "certified"),
    "no forward": ("own_modules.WithoutForward", DIGITS, "skipped"),
    "branches on values": ("own_modules.Branches", DIGITS, "failed"),
    "numbers": ("own_modules.Fits", {"class_path": "own_modules.Values"}, "certified"),
    "several labels": (
        "own_modules.Fits",
        {"class_path": "own_modules.Values", "init_args": {"several": True}},
        "certified",
    ),
    "manual optimization": ("own_modules.TwoOptimizers", {"class_path": "own_modules.Points"}, "certified"),
    "Lightning's demo": (f"{BORING}.BoringModel", {"class_path": f"{BORING}.BoringDataModule"}, "certified"),
    "built late": ("own_modules.BuiltLate", {"class_path": "own_modules.Points"}, "certified"),
    "built in setup": ("own_modules.BuiltInSetup", {"class_path": "own_modules.Points"}, "certified"),
    "an average": ("own_modules.Averages", {"class_path": "own_modules.Points"}, "certified"),
    "two validations": ("own_modules.TwoValidationsToo", {"class_path": "own_modules.TwoValidations"}, "certified"),
    "no validation": ("own_modules.Hooks", {"class_path": "own_modules.NoValidation"}, "certified"),
    "a stream": ("own_modules.Hooks", {"class_path": "own_modules.Streams"}, "certified"),
    "pytorch_lightning": (
        "by_the_other_name.LitClassifier",
        {"class_path": "by_the_other_name.PointsDataModule"},
        "certified",
    ),
    "a sampler": ("own_modules.Hooks", {"class_path": "own_modules.Weighted"}, "certified"),
}
TESTED, REFUSED = "a test", "two optimizers at once"


@pytest.fixture(scope="module")
def package(client: Client, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("own")
    for name in ("own_modules.py", "by_the_other_name.py"):
        (folder / name).write_bytes(Path(own_modules.__file__).with_name(name).read_bytes())
    return str(client.put_package(pack(folder))["package"])


def document(package: str, model: str, data: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": "everyday",
        "model": {"class_path": model},
        "data": data,
        "train": {"epochs": 2},
        "resources": {"workers": 2},
        "code": {"package": package},
    }


Jobs = dict[str, str]
"""Ids by the names of the rows."""


@pytest.fixture(scope="module")
def jobs(client: Client, package: str) -> Iterator[Jobs]:
    """All of them in the queue at once, so that one starts while another one ends."""
    specs = {name: document(package, model, data) for name, (model, data, _) in RUN.items()}
    specs[TESTED] = document(package, "own_modules.Tested", {"class_path": "own_modules.PointsAndTest"})
    specs[TESTED]["train"]["test"] = True
    specs[REFUSED] = document(package, "own_modules.TwoAtOnce", DIGITS)
    ids = {name: client.submit(spec)["id"] for name, spec in specs.items()}
    yield ids
    for job_id in ids.values():
        with suppress(ClientError):  # it has ended
            client.cancel(job_id)


@pytest.mark.parametrize("name", RUN)
def test_module_runs_as_it_is(name: str, client: Client, jobs: Jobs) -> None:
    _, _, export = RUN[name]

    job = finished(client, jobs[name], 500)

    assert job["state"] == "succeeded", job["message"]
    assert job["export"]["state"] == export, job["export"]
    # Lightning's averaging passes over the data once more.
    assert job["progress"]["epoch"] == (3 if name == "an average" else 2)
    if name == "text and pictures":
        assert {"notes.txt", "images"} <= artifacts(job)


def test_test_runs_on_the_weights_that_are_exported(client: Client, jobs: Jobs) -> None:
    job = finished(client, jobs[TESTED], 500)

    assert (job["state"], job["export"]["state"]) == ("succeeded", "certified"), job["message"]
    metrics = job["progress"]["metrics"]
    assert metrics["test/accuracy"] == metrics["test_acc"]
    assert metrics["test_right"] == round(13 * metrics["test_mean"])
    assert {"val_loss", "train/loss"} <= set(metrics)
    uri = str(job["mlflow"]["url"]).partition("/#/")[0]
    run = httpx.get(f"{uri}/api/2.0/mlflow/runs/get", params={"run_id": job["mlflow"]["run_id"]}, timeout=30).json()
    assert {"test_acc", "test/accuracy"} <= {metric["key"] for metric in run["run"]["data"]["metrics"]}


def artifacts(job: dict[str, Any]) -> set[str]:
    uri = str(job["mlflow"]["url"]).partition("/#/")[0]
    params = {"run_id": job["mlflow"]["run_id"]}
    answer = httpx.get(f"{uri}/api/2.0/mlflow/artifacts/list", params=params, timeout=30).json()
    return {file["path"] for file in answer["files"]}


def test_two_optimizers_at_once_fail_in_lightnings_words(client: Client, jobs: Jobs) -> None:
    job = finished(client, jobs[REFUSED], 500)

    assert (job["state"], job["reason"]) == ("failed", "user_error")
    assert job["message"].count("multiple optimizers is only supported with manual optimization") == 1
