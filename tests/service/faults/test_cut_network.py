"""A real cut of a real network between a host that works and the service: its words afterwards count for nothing.

Service and driver are processes, the driver in a network namespace. Ray is a stand-in that starts them, so that a test
can have it say what Ray says of a host it does not hear: that its jobs failed, while they live on (ray #65025).
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from syncnorm.service.client.client import Client
from tests.helpers.amounts import amount
from tests.helpers.service.fake_cluster import FakeServers, fake_servers
from tests.helpers.service.namespaces import REFUSED, CutHost, can_make_hosts, cut_host
from tests.service.conftest import ROOT, STANDIN, RunningService, eventually
from tests.service.integrations.test_on_ray import spec, wait_for

pytestmark = pytest.mark.skipif(not can_make_hosts(), reason=REFUSED)
LEASE_S = 2.0
FAR, NEAR = "far", "near"


class Hosts(FakeServers):
    """A Ray of two hosts whose drivers are processes. The first attempt of a job goes to the far host."""

    def __init__(self, far: CutHost) -> None:
        super().__init__((0, 0))
        self._far = far
        self.drivers: dict[str, subprocess.Popen[bytes]] = {}
        self.is_far_lost = False
        """Ray has given the far host up, and says that what ran there failed."""

    def _ray(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path == "/api/cluster_status":
            usage = {name: {"CPU": [0.0, 64.0]} for name in ([NEAR] if self.is_far_lost else [FAR, NEAR])}
            return 200, {"data": {"clusterStatus": {"loadMetricsReport": {"usageByNode": usage}}}}
        for name, submission in self.submissions.items():
            if self.is_far_lost and submission["driver_node_id"] == FAR:
                submission["status"] = "FAILED"
            elif (code := self.drivers[name].poll()) is not None:
                submission["status"] = "FAILED" if code else "SUCCEEDED"
        return super()._ray(method, path, body)

    def _submit(self, body: dict[str, Any]) -> tuple[int, Any]:
        name = body["submission_id"]
        far = name.endswith("-1")
        self.submissions[name] = {
            "submission_id": name,
            "status": "RUNNING",
            "driver_node_id": FAR if far else NEAR,
            "metadata": body["metadata"],
        }
        command = [*(self._far.command if far else ()), sys.executable, STANDIN, shlex.split(body["entrypoint"])[-1]]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.drivers[name] = subprocess.Popen(command, env=environment, start_new_session=True)
        return 200, {}

    def close(self) -> None:
        for driver in self.drivers.values():
            if driver.poll() is None:
                os.killpg(driver.pid, signal.SIGKILL)
            driver.wait()


@contextmanager
def _stage(home: Path) -> Iterator[tuple[CutHost, Hosts, Client]]:
    with cut_host() as far:
        hosts = Hosts(far)
        with fake_servers(servers=hosts) as (_, url):
            environment = {
                "SYNCNORM_HOST": far.gateway,
                "SYNCNORM_RAY_ADDRESS": url,
                "SYNCNORM_MLFLOW_URI": url,
                "SYNCNORM_STORAGE": str(home / "storage"),
            }
            service = RunningService(home, environment, {"lease_s": LEASE_S, "tick_s": 0.1})
            try:
                with service.start() as client:
                    yield far, hosts, client
            finally:
                service.stop()
                hosts.close()


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[CutHost, Hosts, Client]]:
    with _stage(tmp_path_factory.mktemp("cut")) as made:
        yield made


def _at(value: str) -> float:
    return datetime.fromisoformat(value).timestamp()


def _running(client: Client, **labels: str) -> str:
    job_id: str = client.submit(spec(**labels))["id"]
    eventually(lambda: client.job(job_id)["progress"]["step"] >= 2)
    return job_id


def _cut(stage: tuple[CutHost, Hosts, Client], *, silent_s: float, told: bool, work_s: float) -> tuple[Any, Any]:
    """Cut the host of a working job off for a while; (the job, its attempts), once everything is over.

    told: Ray gives the host up at once; only the lease is left to speak for the attempt.
    """
    far, hosts, client = stage
    job_id = _running(client, steps=str(round(work_s / 0.05)), step_s="0.05")
    hosts.is_far_lost = told
    far.cut()
    try:
        time.sleep(silent_s)
        if told:
            eventually(lambda: client.job(job_id)["attempts"] == 2)
    finally:
        far.join()
        zombie = hosts.drivers[f"{job_id}-1"]
    done = wait_for(client, job_id, "succeeded", "failed")
    assert zombie.wait(60) == 0  # it speaks again, hears that nobody believes it, and goes
    hosts.is_far_lost = False
    return done, client.attempts(job_id)


def check_replaced(done: Any, attempts: Any, hosts: Hosts) -> None:
    """One final result, by the second attempt, begun no earlier than the lease of the first allowed."""
    first, second = attempts
    assert (done["state"], done["progress"]["step"]) == ("succeeded", second["step"])
    assert [first["outcome"], second["outcome"]] == ["lost", "succeeded"]
    assert _at(first["ended_at"]) - _at(first["heartbeat_at"]) >= LEASE_S
    assert _at(first["heartbeat_at"]) < _at(second["created_at"])  # no word of the zombie was taken later
    assert first["step"] < second["step"]
    assert hosts.runs[done["mlflow"]["run_id"]] == "FINISHED"


def test_host_that_comes_back_before_ray_gives_it_up_goes_on(stage: tuple[CutHost, Hosts, Client]) -> None:
    done, attempts = _cut(stage, silent_s=1.5 * LEASE_S, told=False, work_s=1.5)

    assert [attempt["outcome"] for attempt in attempts] == ["succeeded"]
    assert done["state"] == "succeeded"


def test_words_of_a_host_that_was_given_up_count_for_nothing(stage: tuple[CutHost, Hosts, Client]) -> None:
    done, attempts = _cut(stage, silent_s=0, told=True, work_s=2.5)

    check_replaced(done, attempts, stage[1])


@pytest.mark.chaos
def test_words_of_a_host_that_was_cut_off_many_times_count_for_nothing(stage: tuple[CutHost, Hosts, Client]) -> None:
    for number in range(amount(12)):
        done, attempts = _cut(stage, silent_s=(0, 10, 45, 90)[number % 4], told=True, work_s=6)

        check_replaced(done, attempts, stage[1])
