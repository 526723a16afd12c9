"""A study through the whole service: queue, Ray, trainer, MLflow, report. One of its jobs fails, and is shown."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import yaml

from syncnorm.service.client.client import Client
from tests.helpers.paths import EXAMPLES
from tests.stack.conftest import eventually

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]

# fine-tuning starts from another job: tests/stack/test_fine_tuning_example.py.
READY = sorted(path for path in (EXAMPLES / "studies").glob("*.yaml") if path.stem != "fine-tuning")
STUDY: dict[str, Any] = {
    "name": "three-kinds",
    "base": {
        "project": "studies-of-the-tests",
        "model": {"name": "cnn", "init_args": {"channels": [4, 8], "init_gain": 1.0}},
        "data": {"name": "digits", "batch_size": 64},
        "optimizer": {"name": "sgd", "lr": 0.1},
        "train": {"epochs": 1},
        "export": {"formats": []},
        "limits": {"max_failures": 0},
    },
    "grid": {
        "norm.kind,model.init_args.init_gain": {"batch": ["batch", 1.0], "none": ["none", 1.0], "wild": ["none", 1e25]}
    },
    "seeds": [0],
    "claims": [
        {
            "text": "batch learns more than none",
            "metric": "val/error",
            "less": {"norm.kind,model.init_args.init_gain": "batch"},
            "than": {"norm.kind,model.init_args.init_gain": "none"},
        }
    ],
}


def reported(client: Client, study_id: str, timeout_s: float) -> dict[str, Any]:
    """The study once its report is in MLflow."""

    def look() -> dict[str, Any] | None:
        found = client.study(study_id)
        return found if found["state"] == "finished" and found["reported_at"] else None

    return eventually(look, timeout_s)


@pytest.fixture(scope="module")
def study(client: Client) -> dict[str, Any]:
    return reported(client, client.submit_study(STUDY)["id"], 500)


@pytest.fixture(scope="module")
def rest(study: dict[str, Any]) -> Iterator[httpx.Client]:
    uri = study["mlflow"]["url"].split("/#/")[0]
    with httpx.Client(base_url=f"{uri}/api/2.0/mlflow/", timeout=30) as found:
        yield found


def test_children_train_and_one_that_diverges_is_shown(study: dict[str, Any]) -> None:
    assert study["jobs"] == {"succeeded": 2, "failed": 1}
    states = {child["point"]["norm.kind,model.init_args.init_gain"]: child["reason"] for child in study["children"]}
    assert states == {"batch": None, "none": None, "wild": "non_finite"}
    assert [row["metrics"]["val/error"]["mean"] < 1 for row in study["table"]] == [True, True, False]
    assert study["findings"][0]["verdict"] in ("undecided", "does not agree")  # one seed proves nothing


def test_runs_of_the_children_lie_under_that_of_the_study(study: dict[str, Any], rest: httpx.Client) -> None:
    parent = rest.get("runs/get", params={"run_id": study["mlflow"]["run_id"]}).json()["run"]
    experiment = parent["info"]["experiment_id"]
    query = f"tags.`mlflow.parentRunId` = '{study['mlflow']['run_id']}'"

    found = rest.post("runs/search", json={"experiment_ids": [experiment], "filter": query}).json()["runs"]

    assert parent["info"]["status"] == "FINISHED"  # though one child failed, which is counted
    assert {metric["key"]: metric["value"] for metric in parent["data"]["metrics"]}["study/failed"] == 1
    pages = [urlsplit(child["run_url"]).fragment for child in study["children"]]
    assert {run["info"]["run_id"] for run in found} == {urlsplit(page).path.rsplit("/")[-1] for page in pages}


def test_report_is_the_artifact_that_the_service_shows(
    client: Client, study: dict[str, Any], rest: httpx.Client
) -> None:
    run_id = study["mlflow"]["run_id"]
    listed = rest.get("artifacts/list", params={"run_id": run_id}).json()["files"]
    base = str(rest.base_url).removesuffix("api/2.0/mlflow/")

    kept = httpx.get(f"{base}get-artifact", params={"run_uuid": run_id, "path": "report.json"}).json()

    names = {"report.html", "report.json", "values.csv", "study.json", "comparison.png", "curves.png", "heat_map.png"}
    assert {file["path"] for file in listed} == names
    assert kept == json.loads(client.study_report(study["id"], "json"))
    assert b"non_finite" in client.study_report(study["id"])


@pytest.mark.chaos
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("path", READY, ids=lambda path: path.stem)
def test_ready_study_in_full(client: Client, path: Path) -> None:
    done = reported(client, client.submit_study(yaml.safe_load(path.read_text()))["id"], 1700)

    # Without normalization some diverge, which is a finding; nothing else may fail.
    assert {child["reason"] for child in done["children"]} <= {None, "non_finite"}
    assert all(finding["difference"] for finding in done["findings"])
