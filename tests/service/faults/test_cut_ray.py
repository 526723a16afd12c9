"""A host of a real Ray is cut off while it trains for real: one attempt counts, and the other ends by itself (T6)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import httpx
import psutil
import pytest

from syncnorm.service.client.client import Client
from tests.helpers.amounts import amount
from tests.helpers.service.namespaces import REFUSED, CutHost, can_make_hosts, cut_host
from tests.helpers.service.slow_model import SILENT_S
from tests.helpers.service.two_hosts import TwoHosts, two_hosts
from tests.service.conftest import RunningService, eventually
from tests.service.integrations.test_on_ray import run_status, wait_for

pytestmark = [
    pytest.mark.stack,
    pytest.mark.chaos,
    pytest.mark.timeout(3000),
    pytest.mark.skipif(not can_make_hosts(), reason=REFUSED),
]
LEASE_S = 20.0
STOPS_WITHIN_S = 200.0
"""After it knows that nobody hears it: it tries to reach MLflow for a minute, and Ray to reach its head for another."""


@dataclass
class Stage:
    hosts: TwoHosts
    client: Client

    def attempts(self, job_id: str) -> list[dict[str, Any]]:
        return self.client.attempts(job_id)

    def trainers(self) -> list[str]:
        """Commands of what trains on the far host: drivers and Ray's workers."""
        commands = [_command(one) for one in self.hosts.far.processes()]
        ours = ("syncnorm.trainer.driver.main", "ray::RayTrainWorker")
        return [line for line in commands if any(name in line for name in ours)]


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # ended meanwhile
        return ""


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    home = tmp_path_factory.mktemp("cut")
    with cut_host() as far, two_hosts(home, far) as hosts:
        environment = {
            "SYNCNORM_HOST": far.gateway,
            "SYNCNORM_RAY_ADDRESS": hosts.url,
            "SYNCNORM_MLFLOW_URI": hosts.mlflow_uri,
            "SYNCNORM_ALLOW_CODE": "on",
            "RAY_AUTH_TOKEN_PATH": str(hosts.token_file),
        }
        service = RunningService(home, environment, {"lease_s": LEASE_S, "tick_s": 0.5}, trains=True)
        try:
            with service.start() as client:
                yield Stage(hosts, client)
        finally:
            service.stop()


def spec(far: CutHost, workers: int, steps: int) -> dict[str, Any]:
    """A job of 0.1 s a step, at least."""
    return {
        "name": "cut",
        "project": "demo",
        "model": {"class_path": "tests.helpers.service.slow_model.Slow"},
        "data": {"name": "digits", "batch_size": 64},
        "train": {"steps": steps, "checkpoint_every": {"steps": 10}},
        "resources": {"workers": workers},
        "limits": {"collective_timeout_s": 40},
        "env": {"GLOO_SOCKET_IFNAME": far.name} if workers > 1 else {},
        "export": {"formats": [], "register_as": "cut"},
    }


@contextmanager
def training_on_the_far_host(stage: Stage, workers: int, steps: int) -> Iterator[str]:
    """A job whose driver runs on the far host, with its only worker or one of two; within, the near one is busy."""
    if stage.hosts.hosts() < 2:
        stage.hosts.restart_far_ray()
    with stage.hosts.busy_near_host():
        job_id: str = stage.client.submit(spec(stage.hosts.far, workers, steps))["id"]
        eventually(lambda: (stage.client.job(job_id)["progress"] or {"step": 0})["step"] >= 15, 120)
        assert stage.trainers()
        yield job_id


def check_ended_once(stage: Stage, job_id: str, outcomes: list[str]) -> None:
    """MLflow has each point and the model once, and nothing of the job runs on the far host."""
    done = wait_for(stage.client, job_id, "succeeded", "failed", timeout_s=200)
    assert (done["state"], [one["outcome"] for one in stage.attempts(job_id)]) == ("succeeded", outcomes), done
    events = [event["kind"] for event in stage.client.follow_events(job_id)]
    assert (events.count("succeeded"), events.count("checkpoint_fallback")) == (1, 0)
    eventually(lambda: run_status(done) == "FINISHED")
    for key in ("train/loss", "val/loss", "lr"):
        steps = [int(point["step"]) for point in _ask_mlflow(done, "metrics/get-history", metric_key=key)["metrics"]]
        assert steps == sorted(set(steps)), (key, steps)
    versions = _ask_mlflow(done, "model-versions/search", filter=f"tags.`syncnorm.job_id` = '{job_id}'")
    assert len(versions["model_versions"]) == 1
    eventually(lambda: not stage.trainers(), STOPS_WITHIN_S)


def _ask_mlflow(job: dict[str, Any], path: str, **params: str) -> dict[str, Any]:
    base = job["mlflow"]["url"].split("/#/")[0]
    params["run_id"] = job["mlflow"]["run_id"]
    return dict(httpx.get(f"{base}/api/2.0/mlflow/{path}", params=params, timeout=30).raise_for_status().json())


def check_was_replaced(stage: Stage, job_id: str) -> None:
    """Not before the lease was out, whatever Ray said; from the checkpoint that the service chose."""
    first, second = stage.attempts(job_id)
    assert at(first["ended_at"]) - at(first["heartbeat_at"]) >= LEASE_S
    assert at(first["heartbeat_at"]) < at(second["created_at"])  # no word of the first was taken later
    assert f"{job_id}/attempts/1/checkpoints/step-" in second["resume_from"]


def at(value: str) -> float:
    return datetime.fromisoformat(value).timestamp()


def cut_until_replaced(stage: Stage, workers: int, *, heals: bool) -> None:
    """Cut the far host off while it trains, until another attempt trains; heals: before the first has ended."""
    told: dict[str, float] = {}

    def note(what: str) -> None:
        told[what] = round(time.monotonic() - began, 1)

    with training_on_the_far_host(stage, workers, steps=400) as job_id:
        stage.hosts.far.cut()
        began = time.monotonic()
        eventually(lambda: stage.hosts.hosts() == 1)
        note("Ray gives the host up")
    try:
        eventually(lambda: len(stage.attempts(job_id)) == 2, 120)
        note("the next attempt starts")
        eventually(lambda: "training" in (stage.attempts(job_id)[1]["phases"] or {}), 120)
        note("it trains")
        if heals:
            assert workers > 1 or stage.trainers()
        else:
            eventually(lambda: not stage.trainers(), SILENT_S + STOPS_WITHIN_S)
            note("the first is gone")
    finally:
        stage.hosts.far.join()
        note("the link is back")
    if heals:
        eventually(lambda: not stage.trainers(), STOPS_WITHIN_S)
        note("the first is gone")
    check_ended_once(stage, job_id, ["lost", "succeeded"])
    check_was_replaced(stage, job_id)
    print(f"{workers} workers: {told}; left: {[_command(one)[:60] for one in stage.hosts.far.processes()]}")


def test_host_that_is_cut_off_for_a_moment_goes_on(stage: Stage) -> None:
    for _ in range(amount(3)):
        with training_on_the_far_host(stage, 1, steps=150) as job_id:
            stage.hosts.far.cut()
            time.sleep(3)
            stage.hosts.far.join()

            check_ended_once(stage, job_id, ["succeeded"])


def test_attempt_that_was_given_up_stops_once_it_hears_of_it(stage: Stage) -> None:
    for _ in range(amount(3)):
        cut_until_replaced(stage, 1, heals=True)


def test_attempt_that_was_given_up_stops_though_it_hears_nothing(stage: Stage) -> None:
    for _ in range(amount(3)):
        cut_until_replaced(stage, 1, heals=False)


def test_attempt_whose_ranks_are_cut_apart_is_replaced(stage: Stage) -> None:
    for _ in range(amount(3)):
        cut_until_replaced(stage, 2, heals=True)
