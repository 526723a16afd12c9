"""A worker is killed in mid-training: the job goes on from its checkpoint and ends as if nothing had happened."""

from __future__ import annotations

import signal
from typing import Any

import httpx
import psutil
import pytest
import yaml

from syncnorm.service.client.client import Client
from tests.helpers.paths import EXAMPLES
from tests.stack.conftest import Serving, eventually, finished

pytestmark = [pytest.mark.stack, pytest.mark.timeout(500)]

EXAMPLE = EXAMPLES / "digits-sync-batch.yaml"


def document() -> dict[str, Any]:
    small = {"name": "resnet", "init_args": {"depth": 8, "width": 8}}
    changes = {
        "model": small,
        "train": {"epochs": 16, "checkpoint_every": {"steps": 10}},
        "export": {"formats": []},
    }
    return yaml.safe_load(EXAMPLE.read_text()) | {"name": "survivor"} | changes


def rank_process(serving: Serving) -> psutil.Process:
    """One of the two training processes of the job that runs."""

    def both() -> list[psutil.Process]:
        found = serving.processes("RayTrainWorker")
        return found if len(found) == 2 else []

    return eventually(both, 30)[1]


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.chaos)])
def test_job_whose_worker_is_killed_resumes_and_ends_the_same(
    client: Client, serving: Serving, number: signal.Signals
) -> None:
    undisturbed = finished(client, client.submit(document())["id"])
    job = client.submit(document())
    eventually(lambda: client.job(job["id"])["progress"]["step"] >= 25, 200)

    rank_process(serving).send_signal(number)
    done = finished(client, job["id"], 400)

    attempts = client.attempts(job["id"])
    assert done["state"] == "succeeded", done["message"]
    assert [attempt["reason"] for attempt in attempts] == ["worker_lost", None]
    kinds = [event["kind"] for event in client.follow_events(job["id"])]
    assert "succeeded" in kinds
    # Bit for bit: the certificate holds the digest of every weight and statistic.
    agreement = done["model"]["certificate"]["agreement"]
    assert agreement == undisturbed["model"]["certificate"]["agreement"]
    assert losses(done) == losses(undisturbed)


def test_job_whose_worker_is_killed_once_training_is_over_loses_nothing(client: Client, serving: Serving) -> None:
    """The next attempt has nothing to train, and the metrics of the first one to deliver."""
    short = document() | {"train": {"epochs": 2}, "export": {"formats": ["pt2"]}}
    undisturbed = finished(client, client.submit(short)["id"])
    job = client.submit(short)
    eventually(lambda: [each for each in client.attempts(job["id"]) if each["phase"] == "finalizing"], 200)

    rank_process(serving).send_signal(signal.SIGKILL)
    done = finished(client, job["id"], 400)

    assert done["state"] == "succeeded", done["message"]
    assert [attempt["reason"] for attempt in client.attempts(job["id"])] == ["worker_lost", None]
    assert done["model"]["certificate"]["agreement"] == undisturbed["model"]["certificate"]["agreement"]
    assert losses(done) == losses(undisturbed)


@pytest.mark.chaos
def test_room_of_a_killed_driver_goes_to_the_next_attempt(client: Client, serving: Serving) -> None:
    """Nothing but Ray itself frees the two processors that the first attempt held; see driver/ray_trainer.py."""
    job = client.submit(document())
    eventually(lambda: client.job(job["id"])["progress"]["step"] >= 15, 200)
    found = serving.processes("syncnorm.trainer.driver.main")
    assert found

    for process in found:
        process.kill()

    done = finished(client, job["id"], 400)
    assert done["state"] == "succeeded", done["message"]
    assert [attempt["reason"] for attempt in client.attempts(job["id"])] == ["worker_lost", None]


def losses(job: dict[str, Any]) -> list[tuple[int, float]]:
    base = str(job["mlflow"]["url"]).split("/#/")[0]
    params = {"run_id": job["mlflow"]["run_id"], "metric_key": "train/loss"}
    answer = httpx.get(f"{base}/api/2.0/mlflow/metrics/get-history", params=params).json()
    return [(point["step"], point["value"]) for point in answer["metrics"]]
