"""Web pages against the service as users start it, with a real browser: its API, its MLflow and its Ray."""

from __future__ import annotations

import contextlib
import itertools
import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from syncnorm.service.client.client import Client
from syncnorm.trainer.forkserver import launcher
from tests.helpers import chromium, pages
from tests.helpers.chromium import Browser, needs_chromium
from tests.stack.conftest import Serving, eventually

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]

CANARY = "only-for-its-owner"
PLACES = ("another port", "another name of this host", "another site", "rebound name", "sandboxed frame")


@pytest.fixture(scope="module")
def attacker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pages.Attacker]:
    with pages.attacker(tmp_path_factory.mktemp("attacker")) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium.browser((pages.EVIL, pages.REBOUND)) as found:
        yield found


@pytest.fixture(scope="module")
def job(client: Client) -> dict[str, Any]:
    """One that is paused while it is watched, whether or not it had started."""
    made = client.submit(
        {
            "name": "watched",
            "labels": {"canary": CANARY},
            "model": {"name": "mlp"},
            "data": {"name": "digits", "batch_size": 64},
            "train": {"epochs": 10_000},
        }
    )
    client.pause(made["id"])
    eventually(lambda: client.job(made["id"])["state"] == "paused", 100)
    return client.job(made["id"])


def attack(browser: Browser, place: str, attacker: pages.Attacker, target: pages.Target) -> str:
    port = int(target.url.rsplit(":", 1)[1])
    with pages.page_at(browser, place, attacker, port) as page:
        seen = pages.attack(page, place, attacker, target, pages.WRITES | pages.READS)
        assert set(seen) == {*pages.WRITES, *pages.READS}
        return json.dumps(seen) + str(page.run("document.documentElement.outerHTML"))


@needs_chromium
@pytest.mark.parametrize("place", PLACES)
def test_page_of_somebody_else_runs_nothing(
    client: Client, job: dict[str, Any], attacker: pages.Attacker, browser: Browser, place: str, tmp_path: Path
) -> None:
    written = tmp_path / "written"
    command = {
        "name": "STEP",
        "model": {"class_path": "os.system", "init_args": {"command": f"id > {written}"}},
        "data": {"name": "digits", "batch_size": 8},
    }
    before = list(client.jobs())

    target = pages.Target(client.url, "/v1/jobs", json.dumps(command), f"/v1/jobs/{job['id']}", job["id"])
    seen = attack(browser, place, attacker, target)

    assert [one["id"] for one in client.jobs()] == [one["id"] for one in before]
    found = client.job(job["id"])
    assert (found["state"], found["priority"]) == ("paused", job["priority"])
    assert CANARY not in seen
    assert not written.exists()


@pytest.fixture(scope="module")
def mlflow(serving: Serving) -> str:
    line = next(" ".join(one.cmdline()) for one in serving.processes("syncnorm.service.local.mlflow_server server"))
    return f"http://127.0.0.1:{line.partition('--port ')[2].split()[0]}"


@needs_chromium
@pytest.mark.parametrize("place", PLACES)
def test_page_of_somebody_else_has_no_way_into_mlflow(
    client: Client, mlflow: str, attacker: pages.Attacker, browser: Browser, place: str
) -> None:
    """MLflow's own rules let in every page on localhost."""
    assert client.is_ready()
    search = "/api/2.0/mlflow/experiments/search?max_results=100"
    if place == PLACES[0]:
        httpx.post(f"{mlflow}/api/2.0/mlflow/experiments/create", json={"name": CANARY}).raise_for_status()
    before = httpx.get(mlflow + search).json()

    target = pages.Target(mlflow, "/api/2.0/mlflow/experiments/create", '{"name": "STEP"}', search, "none")
    seen = attack(browser, place, attacker, target)

    assert httpx.get(mlflow + search).json() == before
    assert CANARY in json.dumps(before)
    assert CANARY not in seen


FOREIGN = {
    "rebound name": {"Host": "evil.example"},
    "looks private": {"Host": "10.attacker.example"},
    "looks private as well": {"Host": "192.168.evil.example"},
    "begins as ours": {"Host": "localhost:5000.evil.example"},
    "another port": {"Origin": "http://localhost:9999"},
    "no origin to speak of": {"Origin": "null"},
    "another site": {"Sec-Fetch-Site": "cross-site"},
    "another port, no origin": {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"},
}


@pytest.mark.parametrize("name", FOREIGN)
def test_mlflow_refuses_foreign_headers_on_reads_and_writes(client: Client, mlflow: str, name: str) -> None:
    assert client.is_ready()
    answers = [
        httpx.get(mlflow, headers=FOREIGN[name]),
        httpx.get(f"{mlflow}/ajax-api/2.0/mlflow/experiments/search?max_results=1", headers=FOREIGN[name]),
        httpx.post(f"{mlflow}/api/2.0/mlflow/experiments/create", json={"name": "evil"}, headers=FOREIGN[name]),
        httpx.put(f"{mlflow}/api/2.0/mlflow-artifacts/artifacts/evil.txt", content=b"x", headers=FOREIGN[name]),
    ]

    assert [answer.status_code for answer in answers] == [403] * 4
    assert not [key for answer in answers for key in answer.headers if key.startswith("access-control-allow")]


HARMLESS = {"/": b"<!doctype html>", "/api/healthz": b"raylet: success\ngcs: success"}
"""What some of Ray's servers answer without its token, and how that begins: nothing about this cluster."""


@pytest.mark.parametrize("headers", [{}, {"Host": "evil.example"}, {"Origin": "http://localhost:9999"}])
def test_no_port_of_ray_tells_or_does_anything_without_its_token(
    client: Client, serving: Serving, headers: dict[str, str]
) -> None:
    assert client.is_ready()
    paths = ("/", "/metrics", "/api/version", "/api/cluster_status", "/api/jobs/", "/logs", "/api/healthz")
    asked = [*(("GET", path) for path in paths), ("POST", "/api/jobs/"), ("POST", "/api/job_agent/jobs/")]
    answered = 0

    for port, (method, path) in itertools.product(ray_ports(serving), asked):
        body = b'{"entrypoint": "id"}' if method == "POST" else None
        try:
            answer = httpx.request(method, f"http://127.0.0.1:{port}{path}", content=body, headers=headers, timeout=5)
        except httpx.HTTPError:
            continue  # speaks gRPC
        answered += 1
        harmless = answer.is_success and answer.content.lower().startswith(HARMLESS.get(path, b"never"))
        assert answer.is_client_error or harmless, (port, method, path, answer.status_code, answer.content[:200])

    assert answered > 20


def ray_ports(serving: Serving) -> set[int]:
    """Every port that something of Ray listens on."""
    found = set()
    for process in processes_of_ray(serving):
        with contextlib.suppress(psutil.Error):
            found |= {one.laddr.port for one in process.net_connections("inet") if one.status == psutil.CONN_LISTEN}
    return found


def processes_of_ray(serving: Serving) -> list[psutil.Process]:
    """The keeper of Ray and all below it."""
    started = psutil.Process(serving.process.pid).children()
    keeper = next(one for one in started if "ray.pids" in " ".join(one.cmdline()))
    return [keeper, *keeper.children(recursive=True)]


def test_no_process_that_runs_jobs_has_the_settings_of_the_service(client: Client, serving: Serving) -> None:
    assert client.is_ready()
    found = {name for one in processes_of_ray(serving) for name in one.environ()}

    assert "RAY_AUTH_TOKEN_PATH" in found
    of_service = {name for name in found if name.startswith(("SYNCNORM_", "MLFLOW_"))}
    assert of_service == {launcher.FOLDER}  # where the parent of warm processes is: no setting


def test_nobody_else_may_read_the_state_folder(client: Client, serving: Serving) -> None:
    assert client.is_ready()
    found = [serving.home, *serving.home.rglob("*")]

    assert {"service.db", "mlflow.db", "ray.token"} <= {path.name for path in found}
    # `out` is where the test itself keeps what the service prints.
    assert [path for path in found if stat.S_IMODE(path.lstat().st_mode) & 0o077 and path.name != "out"] == []
