"""A job of two workers that needs a package which is not installed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from syncnorm.service.cli.code_folder import pack
from syncnorm.service.client.client import Client, ProblemError
from tests.helpers.wheels import settings_of, write_wheel
from tests.stack.conftest import Serving, eventually, finished

pytestmark = [pytest.mark.stack, pytest.mark.chaos, pytest.mark.timeout(400)]

SOURCE = """
import gears
from torch import nn

def make(num_classes: int = 10) -> nn.Module:
    width = int(8 * gears.RATIO)
    layers = [nn.Flatten(), nn.Linear(64, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, num_classes)]
    return nn.Sequential(*layers)
"""


@pytest.fixture
def serving(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Serving]:
    write_wheel(tmp_path / "index", "gears", "1.5", "RATIO = 2.0\n")
    for name in ("scratch", "home"):
        (tmp_path / name).mkdir()
    settings = settings_of(tmp_path / "index") | {"SYNCNORM_SCRATCH": str(tmp_path / "scratch")}
    running = Serving(tmp_path / "home", **settings, SYNCNORM_ALLOW_REQUIREMENTS=request.param)
    try:
        yield running
    finally:
        running.interrupt()


def document(client: Client, folder: Path) -> dict[str, object]:
    folder.mkdir()
    (folder / "geared.py").write_text(SOURCE)
    (folder / "requirements.txt").write_text("gears>=1\n")
    return {
        "name": "geared",
        "model": {"class_path": "geared.make"},
        "data": {"name": "digits", "batch_size": 64},
        "train": {"epochs": 1},
        "resources": {"workers": 2},
        "code": {"package": client.put_package(pack(folder))["package"], "requirements": "requirements.txt"},
    }


@pytest.mark.parametrize("serving", ["on"], indirect=True)
def test_job_gets_what_it_needs_with_the_operators_permission(serving: Serving, tmp_path: Path) -> None:
    with eventually(serving.ready, 180) as client:
        spec = document(client, tmp_path / "code")
        plan = client.plan(spec)

        job = finished(client, client.submit(spec)["id"])

        assert [one["to"] for one in plan["conversion"]] == ["SyncBatchNorm"], plan["findings"]
        assert (job["state"], job["export"]["state"]) == ("succeeded", "certified"), job["message"]
        assert artifact(job, "code/requirements.txt") == "gears==1.5\n"


@pytest.mark.parametrize("serving", ["off"], indirect=True)
def test_job_is_refused_without_it(serving: Serving, tmp_path: Path) -> None:
    with (
        eventually(serving.ready, 180) as client,
        pytest.raises(ProblemError, match="SYNCNORM_ALLOW_REQUIREMENTS=on"),
    ):
        client.submit(document(client, tmp_path / "code"))


def artifact(job: dict[str, object], path: str) -> str:
    mlflow: dict[str, str] = job["mlflow"]  # type: ignore[assignment]
    params = {"path": path, "run_uuid": mlflow["run_id"]}
    answer = httpx.get(f"{mlflow['url'].partition('/#/')[0]}/get-artifact", params=params, timeout=30)
    return answer.raise_for_status().text
