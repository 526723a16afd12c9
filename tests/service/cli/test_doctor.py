"""What `syncnorm doctor` makes of what it sees. The whole of it runs against real containers in tests/deploy."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import uvicorn
from fastapi import FastAPI

from syncnorm.service.cli import doctor
from syncnorm.service.cli.doctor import examine, judge
from syncnorm.service.settings import Settings
from syncnorm.service.telemetry.metrics import Metrics
from syncnorm.trainer.contract.cluster_report import HostReport
from syncnorm.trainer.forkserver.parent_memory import Memory
from tests.helpers.service.api import api
from tests.helpers.service.world import World

HEALTHY = HostReport(
    host="w1", gpus=2, cuda="12.8", storage_error=None, api_error=None, mlflow_error=None, clock_ahead_s=0.4
)


def test_healthy_worker_has_no_problem() -> None:
    check = judge(HEALTHY)

    assert check.problem is None
    assert check.detail == "2 GPUs, torch for CUDA 12.8"


@pytest.mark.parametrize(
    ("broken", "fix"),
    [
        ({"storage_error": "Read-only file system"}, "mount the same volume"),
        ({"api_error": "http://api:8000/healthz: timed out"}, "SYNCNORM_WORKER_URL"),
        ({"mlflow_error": "403"}, "--allowed-hosts"),
        ({"clock_ahead_s": -7.0}, "-7 s off"),
        ({"cuda": None}, "CUDA TORCH_INDEX"),
    ],
)
def test_each_fault_of_a_worker_is_named_with_its_fix(broken: dict[str, object], fix: str) -> None:
    check = judge(HEALTHY.model_copy(update=broken))

    assert check.problem is not None
    assert fix in check.problem


def test_worker_without_gpus_may_have_a_cpu_torch() -> None:
    check = judge(HEALTHY.model_copy(update={"gpus": 0, "cuda": None}))

    assert check.problem is None


def test_state_folder_without_a_service_is_told_how_to_start_one(tmp_path: Path) -> None:
    checks = list(examine(Settings(home=tmp_path)))

    assert [check.name for check in checks] == ["service"]
    assert "no service runs on" in (checks[0].problem or "")
    assert "`syncnorm serve`" in (checks[0].problem or "")


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def embedded(tmp_path: Path, metrics: Metrics) -> Iterator[tuple[Settings, World]]:
    """The settings and the world of a service on a real socket that starts everything for itself."""
    (tmp_path / "storage").mkdir()
    with api(tmp_path) as (client, world):
        app = cast(FastAPI, client.app)
        app.state.context = replace(app.state.context, metrics=metrics)
        server = uvicorn.Server(uvicorn.Config(client.app, log_config=None, timeout_graceful_shutdown=1))
        with socket.create_server(("127.0.0.1", 0)) as listener:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            (tmp_path / "service.json").write_text(json.dumps({"url": url}))
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
            thread.start()
            yield Settings(home=tmp_path), world
            server.should_exit = True
            thread.join(20)


def test_embedded_service_is_examined_part_by_part(embedded: tuple[Settings, World]) -> None:
    settings, _ = embedded

    checks = {check.name: check for check in examine(settings)}

    names = ["service", "database", "storage", "cluster", "mlflow", "workers", "plans", "jobs"]
    assert {name: check.problem for name, check in checks.items()} == dict.fromkeys(names)
    assert "host" in checks["workers"].detail
    assert checks["plans"].detail == checks["jobs"].detail == "cold: each starts processes of its own"


def test_parents_of_warm_processes_are_told_with_their_memory(
    embedded: tuple[Settings, World], metrics: Metrics
) -> None:
    settings, _ = embedded
    metrics.watch_parents({"plans": lambda: Memory(1, 480 * 2**20), "jobs": lambda: Memory(0, 0)})

    checks = {check.name: check for check in examine(settings)}

    assert checks["plans"].detail == "warm: 1 parent, 480 MiB; the first plan starts one"
    assert checks["jobs"].detail == "warm: 0 parents, 0 MiB; the first job starts one"


def test_part_of_an_embedded_service_that_is_away_is_named(embedded: tuple[Settings, World]) -> None:
    settings, world = embedded
    world.cluster.reachable = False
    world.reconciler.tick()

    problems = {check.name: check.problem for check in examine(settings)}

    assert "ray.log" in (problems["cluster"] or "")
    assert problems["mlflow"] is None


def test_embedded_service_that_does_not_answer_is_named(tmp_path: Path) -> None:
    (tmp_path / "service.json").write_text('{"url": "http://127.0.0.1:9"}')
    (tmp_path / "storage").mkdir()

    problems = {check.name: check.problem for check in examine(Settings(home=tmp_path))}

    assert "Connection refused" in (problems["service"] or "")
    assert "cluster" not in problems


def test_parts_that_do_not_answer_are_each_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "t")
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    nowhere = "http://127.0.0.1:9"
    settings = Settings(
        home=tmp_path,
        database_url=f"sqlite:///{tmp_path / 'service.db'}",
        ray_address=nowhere,
        mlflow_uri=nowhere,
        storage=str(tmp_path / "missing"),
    )

    problems = {check.name: check.problem for check in examine(settings)}

    assert "Run the migrate service" in (problems["database"] or "")
    assert "Connection refused" in (problems["mlflow"] or "")
    assert "can't be reached" in (problems["ray"] or "")
    assert "missing" in (problems["storage"] or "")


def test_storage_that_is_nearly_full_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LEAST_FREE_GIB", 2.0**30)

    check = doctor._storage(str(tmp_path))

    assert check.problem is not None
    assert "MiB free" in check.problem


def test_storage_with_space_tells_how_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LEAST_FREE_GIB", 0.0)

    assert doctor._storage(str(tmp_path)).detail.endswith("GiB free")
