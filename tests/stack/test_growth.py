"""A job that starts on fewer workers than it asks for grows on a real Ray, and learns what it would have."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from syncnorm.service.client.client import Client
from tests.stack.conftest import Serving, eventually, finished

pytestmark = [pytest.mark.stack, pytest.mark.chaos, pytest.mark.timeout(580)]

JOB = {
    "project": "demo",
    "model": {"name": "mlp", "init_args": {"hidden": [8]}},
    "data": {"name": "digits", "batch_size": 64},
    "norm": {"kind": "sync_batch"},
    "export": {"formats": []},
}
EPOCHS, STEPS = 400, 12  # an epoch of 1,437 digits in batches of 128
LONG = {"train": {"epochs": EPOCHS, "precision": "64-true"}}


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    serving = Serving(tmp_path, program="tests.helpers.stack.soon_grown")
    try:
        with eventually(serving.ready, 180) as found:
            yield found
    finally:
        serving.interrupt()


@pytest.fixture
def load(request: pytest.FixtureRequest) -> Iterator[None]:
    """So many busy processes for each processor."""
    command = ["nice", sys.executable, "-c", "while True: pass"]
    busy = [subprocess.Popen(command) for _ in range(request.param * (os.cpu_count() or 1))]
    yield
    for process in busy:
        process.kill()
        process.wait()


@pytest.mark.parametrize("load", [0, 2], ids=["quiet", "busy"], indirect=True)
@pytest.mark.usefixtures("load")
def test_job_grows_once_the_job_beside_it_has_ended(client: Client) -> None:
    blocker, job = start_beside_a_blocker(client)
    before = client.job(job["id"])["world_size"]

    client.cancel(blocker["id"])
    done = finished(client, job["id"], 400)

    assert (done["state"], before, done["world_size"]) == ("succeeded", 1, 2), done["message"]
    assert [attempt["workers"] for attempt in client.attempts(job["id"])] == [1, 2]
    events = {event["kind"]: event["data"] for event in client.follow_events(job["id"])}
    resumed_at = events["workers_changed"]["step"]
    assert 0 < resumed_at < EPOCHS * STEPS
    assert (events["resize_requested"]["workers"], events["resize_requested"]["to"]) == (1, 2)
    assert events["workers_changed"] == {"attempt": 2, "workers": 2, "before": 1, "step": resumed_at}
    assert tags(done)["syncnorm.world_size_changes"] == f"1 from step 0, 2 from step {resumed_at}"
    # The global batch stays: an epoch has as many steps as before, and each is one point, none lost or twice.
    assert [step for step, _ in losses(done)] == list(range(STEPS, EPOCHS * STEPS + 1, STEPS))


def test_job_that_grew_learned_what_it_would_have_with_all_workers_from_the_start(client: Client) -> None:
    blocker, job = start_beside_a_blocker(client)
    client.cancel(blocker["id"])
    grown = finished(client, job["id"], 400)

    whole = finished(client, client.submit(JOB | LONG | {"name": "whole", "resources": {"workers": 2}})["id"])

    assert (grown["world_size"], whole["world_size"]) == (2, 2), (grown["message"], whole["message"])
    # fp64; sums over samples in another order
    assert dict(losses(grown)) == pytest.approx(dict(losses(whole)), rel=1e-6)


def start_beside_a_blocker(client: Client) -> tuple[dict[str, Any], dict[str, Any]]:
    """(a job that leaves room for one worker; an elastic job that trains on that)."""
    cpus = int(sum(node["cpus"] for node in client.cluster()["nodes"]))
    most = {"train": {"epochs": 1_000_000}, "resources": {"workers": 1, "cpus_per_worker": cpus - 1}}
    blocker = client.submit(JOB | most | {"name": "blocker"})
    eventually(lambda: client.job(blocker["id"])["progress"]["step"] > 5, 200)
    elastic = {"name": "elastic", "resources": {"workers": 2, "min_workers": 1}}
    job = client.submit(JOB | LONG | elastic)
    eventually(lambda: client.job(job["id"])["progress"]["step"] > 5, 200)
    return blocker, job


def losses(job: dict[str, Any]) -> list[tuple[int, float]]:
    base = str(job["mlflow"]["url"]).split("/#/")[0]
    params = {"run_id": job["mlflow"]["run_id"], "metric_key": "train/loss", "max_results": "10000"}
    answer = httpx.get(f"{base}/api/2.0/mlflow/metrics/get-history", params=params).json()
    return sorted((point["step"], point["value"]) for point in answer["metrics"])


def tags(job: dict[str, Any]) -> dict[str, str]:
    base = str(job["mlflow"]["url"]).split("/#/")[0]
    answer = httpx.get(f"{base}/api/2.0/mlflow/runs/get", params={"run_id": job["mlflow"]["run_id"]}).json()
    return {tag["key"]: tag["value"] for tag in answer["run"]["data"]["tags"]}
