"""Real processes and real time: a service whose ports never answer, and two replicas with a slow Ray."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from syncnorm.service.api.app import create_app
from syncnorm.service.client.client import Client
from syncnorm.service.integrations.ray_jobs import ENTRYPOINTS
from syncnorm.service.local.programs import LocalRay
from syncnorm.service.server import make_context
from syncnorm.service.settings import Settings
from syncnorm.service.store.database import Database
from tests.helpers.service.databases import postgres_programs, postgres_server
from tests.helpers.service.fake_cluster import FakeServers, fake_servers
from tests.service.conftest import RunningService, eventually
from tests.service.poison.scene import VICTIM

_SIGTERM_S = 8.0
"""Docker kills after ten."""


@contextmanager
def silent_server() -> Iterator[str]:
    """Takes connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        taken: list[socket.socket] = []

        def take() -> None:
            with contextlib.suppress(OSError):
                while True:
                    taken.append(listener.accept()[0])

        threading.Thread(target=take, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        for one in taken:
            one.close()


def address(home: Path) -> str | None:
    path = home / "service.json"
    return str(json.loads(path.read_text())["url"]) if path.exists() else None


@pytest.mark.parametrize("silent", [*(pytest.param(one, marks=pytest.mark.chaos) for one in ("ray", "mlflow")), "both"])
def test_sigterm_is_obeyed_in_seconds_whoever_is_silent(tmp_path: Path, silent: str) -> None:
    with silent_server() as nobody, fake_servers() as (_, url):
        places = {
            "SYNCNORM_RAY_ADDRESS": url if silent == "mlflow" else nobody,
            "SYNCNORM_MLFLOW_URI": url if silent == "ray" else nobody,
        }
        running = RunningService(tmp_path, places)
        running.launch()
        assert running.process is not None
        try:
            with Client(eventually(lambda: address(tmp_path), 60)) as client:
                eventually(lambda: is_alive(client.url), 60)
                client.submit(VICTIM)
                time.sleep(2.0)  # somebody is being asked by now, and does not answer
            began = time.monotonic()
            running.process.terminate()
            running.process.wait(120)
            took_s = time.monotonic() - began
        finally:
            running.stop()

    assert took_s < _SIGTERM_S


def is_alive(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", timeout=5, trust_env=False).is_success
    except httpx.HTTPError:
        return False


class SlowRay(FakeServers):
    """Every answer of Ray takes so long."""

    answer_s = 0.0

    def answer(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if not path.startswith("/api/2.0/") and path != "/health":
            time.sleep(self.answer_s)
        return super().answer(method, path, body)


@pytest.fixture(scope="module")
def postgres_url() -> Iterator[str]:
    if (programs := postgres_programs()) is None:
        pytest.skip("no PostgreSQL server is installed (Debian: apt-get install postgresql)")
    with postgres_server(programs) as url:
        with contextlib.closing(Database(url)) as database:
            database.migrate()
        yield url


@contextmanager
def replicas(folder: Path, database_url: str, answer_s: float) -> Iterator[list[TestClient]]:
    """Two, each with all its loops."""
    servers = SlowRay((0.1, 0.5))
    servers.answer_s = answer_s
    with ExitStack() as stack:
        _, url = stack.enter_context(fake_servers(servers=servers))
        clients = []
        for number in (1, 2):
            settings = Settings(
                folder / f"home{number}",
                port=1,
                database_url=database_url,
                ray_address=url,
                mlflow_uri=url,
                storage=str(folder / "storage"),
                tick_s=0.2,
            )
            ray = LocalRay(url, "", ENTRYPOINTS)
            here = f"http://127.0.0.1:{number}"
            app = create_app(make_context(settings, ray, url, here, stack))
            clients.append(stack.enter_context(TestClient(app, here, raise_server_exceptions=False)))
        yield clients


def state(client: TestClient, job_id: str) -> str:
    return str(client.get(f"/v1/jobs/{job_id}").json()["state"])


def test_standby_replica_is_ready_and_answers_as_the_holder(tmp_path: Path, postgres_url: str) -> None:
    with replicas(tmp_path, postgres_url, answer_s=0.0) as clients:
        for client in clients:
            eventually(lambda client=client: client.get("/readyz").status_code == 200, 20)
        waits = clients[0].post("/v1/jobs", json={**VICTIM, "name": "waits"}).json()["id"]
        clients[0].post(f"/v1/jobs/{waits}/pause")
        eventually(lambda: state(clients[0], waits) == "paused", 20)
        too_large = [client.post("/v1/jobs", json={**VICTIM, "resources": {"workers": 65}}) for client in clients]
        codes = [client.get(f"/v1/jobs/{waits}/explain").json()["code"] for client in clients]
        clusters = [client.get("/v1/cluster").json() for client in clients]

        assert [answer.status_code for answer in too_large] == [422, 422]
        assert codes[0] == codes[1]
        assert clusters[0]["nodes"] == clusters[1]["nodes"] != []
        for client in clients:
            assert "syncnorm_cluster_reachable 1.0" in client.get("/metrics").text


@pytest.mark.chaos
def test_two_replicas_start_jobs_though_ray_takes_6_s_an_answer(tmp_path: Path, postgres_url: str) -> None:
    with replicas(tmp_path, postgres_url, answer_s=6.0) as clients:
        job_id = clients[1].post("/v1/jobs", json=VICTIM).json()["id"]

        eventually(lambda: state(clients[0], job_id) == "succeeded", 120)
