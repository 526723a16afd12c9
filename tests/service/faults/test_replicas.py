"""Several services on one database: one acts, the others answer as it does, and a slow Ray stops none of them."""

from __future__ import annotations

import copy
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient

from syncnorm.service.api.app import create_app
from syncnorm.service.background.loop import Loop, StoppedError, stop_all
from syncnorm.service.integrations.ray_jobs import ClusterState
from syncnorm.service.jobs.attempt_ending import Rules
from syncnorm.service.jobs.job import Job, JobState
from syncnorm.service.reconciler.backends import Backends
from syncnorm.service.reconciler.held_lease import HeldLease, LeaseLostError
from syncnorm.service.reconciler.reconciler import NothingStartedError, Reconciler
from syncnorm.service.scheduling.schedule import Policy, Schedule
from syncnorm.service.scheduling.scheduler import schedule
from syncnorm.service.store import Store
from syncnorm.service.store import schema as t
from syncnorm.service.store.database import Database
from tests.helpers.service.api import SPEC, _no_lifespan, context_of
from tests.helpers.service.databases import postgres_programs, postgres_server
from tests.helpers.service.world import World
from tests.service.conftest import ROOT, eventually

LEASE_S = 1.5
LOOK_S = 2.0
"""Of a slow Ray, in proportion: 18 s, for a lease of 15 s."""


@pytest.fixture(scope="module")
def postgres() -> Iterator[Database]:
    programs = postgres_programs()
    if programs is None:
        pytest.skip("no PostgreSQL server is installed (Debian: apt-get install postgresql)")
    with postgres_server(programs) as url, closing(Database(url)) as made:
        made.migrate()
        yield made


@pytest.fixture
def world(tmp_path: Path, postgres: Database) -> World:
    with postgres.write() as c:
        for table in reversed(t.metadata.sorted_tables):
            c.execute(sa.delete(table))
    return World(tmp_path, postgres)


def another(world: World, backends: Backends | None = None) -> Reconciler:
    """Of another process on the same database."""
    return Reconciler(
        backends or replace(world.reconciler.backends), rules=Rules(startup_timeout_s=200.0), policy=Policy()
    )


def replica(world: World, reconciler: Reconciler) -> World:
    other = copy.copy(world)
    other.reconciler = reconciler
    return other


@contextmanager
def client_of(world: World, reconciler: Reconciler) -> Iterator[TestClient]:
    app = create_app(context_of(replica(world, reconciler), world.folder, False, {}))
    app.router.lifespan_context = _no_lifespan
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def test_standby_is_ready_and_answers_as_the_leader_does(world: World) -> None:
    trains = world.submit(labels={"works": "99"})
    for _ in range(3):
        world.step()
    jobs = [trains, *(_later(world, workers) for workers in (3, 2, 4))]
    leader, standby = world.reconciler, another(world)
    leader.tick()
    standby.tick()

    with client_of(world, leader) as at_leader, client_of(world, standby) as at_standby:
        ready = [client.get("/readyz") for client in (at_leader, at_standby)]
        paths = ["/v1/cluster", *(f"/v1/jobs/{job.id}/explain" for job in jobs)]
        answers = [[client.get(path).json() for path in paths] for client in (at_leader, at_standby)]
        body = SPEC | {"resources": {"workers": 65}}
        refused = [client.post("/v1/jobs", json=body) for client in (at_leader, at_standby)]
        plans = [client.post("/v1/jobs?dry_run=true", json=SPEC).json() for client in (at_leader, at_standby)]
        metrics = at_standby.get("/metrics").text

    assert [(one.status_code, one.json()["role"]) for one in ready] == [(200, "leader"), (200, "standby")]
    assert answers[0] == answers[1]
    assert {one["code"] for one in answers[0][1:]} == {"training", "no_room", "held_for_job_ahead", "no_room_behind"}
    assert [one.status_code for one in refused] == [422, 422]
    assert plans[0] == plans[1]
    assert "syncnorm_cluster_reachable 1.0" in metrics and "syncnorm_reconciler_leader 0.0" in metrics


def _later(world: World, workers: int) -> Job:
    world.clock.advance(1)
    return world.submit(resources={"workers": workers})


def test_standby_changes_nothing_and_takes_over_with_a_view(world: World) -> None:
    standby = another(world)
    world.reconciler.tick()
    job = world.submit()

    standby.tick()
    untouched = world.job(job.id)
    world.clock.advance(16)
    standby.tick()

    assert (untouched.state, untouched.version) == (JobState.QUEUED, 1)
    assert (standby.role, world.job(job.id).state) == ("leader", JobState.STARTING)


class Slow:
    """A cluster that takes its time with every look."""

    def __init__(self, cluster: Any, seconds: float) -> None:
        self._cluster, self._seconds = cluster, seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cluster, name)

    def look(self) -> ClusterState:
        time.sleep(self._seconds)
        view: ClusterState = self._cluster.observe()
        return view


def test_two_replicas_start_jobs_on_a_ray_that_is_slower_than_the_lease(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("syncnorm.service.reconciler.reconciler.LEASE_S", LEASE_S)
    store = Store(world.database)  # in real time, as leases go
    job = world.submit()
    loops = []
    for _ in range(2):
        backends = replace(world.reconciler.backends, store=store, dispatcher=Slow(world.cluster, LOOK_S))
        loops.append(another(world, backends).loop(threading.Event(), 0.2))
    try:
        for loop in loops:
            loop.start()
        eventually(lambda: world.job(job.id).state is not JobState.QUEUED, 6 * LOOK_S)
        with world.database.read() as c:
            token = c.execute(sa.select(t.leases.c.token)).scalar_one()
    finally:
        stop_all(loops)

    assert token == 1  # the lease has not changed hands
    assert [loop.health.failed for loop in loops] == [0, 0]


def test_holder_that_was_frozen_changes_nothing_after_another_took_over(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its token is refused, whatever it believes of its lease."""
    job = world.submit()
    blind = another(world, replace(world.reconciler.backends, dispatcher=Slow(world.cluster, 1e9)))
    monkeypatch.setattr(blind, "_observe_cluster", lambda: None)  # so that it starts nothing itself

    def frozen_for_longer_than_the_lease(*args: Any) -> Schedule:
        world.clock.advance(20)
        blind.tick()
        return schedule(*args)

    monkeypatch.setattr("syncnorm.service.reconciler.launch_step.schedule", frozen_for_longer_than_the_lease)
    with pytest.raises(NothingStartedError):
        world.reconciler.tick()

    assert (world.job(job.id).state, world.job(job.id).version) == (JobState.QUEUED, 1)
    assert blind.role == "leader"


def held(renew: Any, **options: Any) -> HeldLease:
    return HeldLease(renew, threading.Event(), lease_s=0.09, **options)


def test_lease_is_renewed_while_a_tick_acts() -> None:
    renewals: list[float] = []

    def renew() -> bool:
        renewals.append(time.monotonic())
        return True

    with held(renew) as lease:
        eventually(lambda: len(renewals) > 5, 10)
        lease.check()


@pytest.mark.parametrize(("answer", "budget_s"), [(False, 60.0), (True, 0.0)], ids=["taken", "over its budget"])
def test_tick_ends_once_its_lease_is_lost(answer: bool, budget_s: float) -> None:
    with held(lambda: answer, budget_s=budget_s) as lease:
        lost = eventually(lambda: _lost(lease), 10)

    assert "lost the reconciler's lease" in str(lost)


def test_lease_that_can_not_be_renewed_in_time_is_lost() -> None:
    with held(lambda: 1 / 0) as lease:
        assert "could not renew it in time" in str(eventually(lambda: _lost(lease), 10))


def _lost(lease: HeldLease) -> LeaseLostError | None:
    try:
        lease.check()
    except LeaseLostError as error:
        return error
    return None


def test_tick_ends_between_two_items_when_the_service_stops(world: World) -> None:
    jobs = [world.submit(resources={"workers": 1}) for _ in range(3)]
    loop = world.reconciler.loop(threading.Event(), 1.0)
    real = world.cluster.start

    def start(*args: Any) -> None:
        loop.stop()
        real(*args)

    world.cluster.start = start  # type: ignore[method-assign]
    with pytest.raises(StoppedError):
        world.reconciler.tick()

    assert sum(world.job(job.id).attempt for job in jobs) == 1
    assert world.reconciler.health.failed == 0


def test_loop_that_is_stuck_is_left_behind_and_gives_back_what_it_holds() -> None:
    stuck, given_back = threading.Event(), threading.Event()
    loop = Loop("stuck", lambda: bool(stuck.wait(60)) and None, lambda: 0.01, leave=given_back.set)
    loop.start()

    began = time.monotonic()
    stop_all([loop])
    took_s = time.monotonic() - began
    stuck.set()

    assert took_s < 5
    assert given_back.is_set()


def test_loop_goes_on_after_any_error_and_counts_it() -> None:
    errors: list[BaseException] = [ValueError("one"), SystemExit(3), KeyError("three")]
    done = threading.Event()

    def tick() -> None:
        if errors:
            raise errors.pop(0)
        done.set()

    loop = Loop("tries", tick, lambda: 0.01)
    loop.start()
    assert done.wait(10)
    stop_all([loop])

    assert loop.health.failed == 2  # an exit is none of the tick's errors, and ends nothing
    assert loop.health.is_good


@contextmanager
def silent_server() -> Iterator[tuple[str, list[float]]]:
    """(URL, when each connection came): takes every connection and never answers."""
    taken: list[socket.socket] = []
    taken_at: list[float] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            try:
                while True:
                    taken.append(listener.accept()[0])
                    taken_at.append(time.monotonic())
            except OSError:
                return

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", taken_at
    for connection in taken:
        connection.close()


def test_sigterm_is_obeyed_in_seconds_though_ray_and_mlflow_never_answer(tmp_path: Path) -> None:
    with silent_server() as (url, taken_at):
        code = "from syncnorm.service.settings import Settings; from syncnorm.service.server import serve; "
        code += "serve(Settings.from_environment(), lambda url, context: None)"
        environment = {"SYNCNORM_HOME": str(tmp_path), "SYNCNORM_RAY_ADDRESS": url, "SYNCNORM_MLFLOW_URI": url}
        environment |= {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
        with (tmp_path / "out").open("wb") as out:
            process = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=out, stderr=out)
        try:
            address = tmp_path / "service.json"
            eventually(lambda: address.exists() and address.read_text(), 60)
            base = eventually(lambda: _url(address), 10)
            eventually(lambda: _is_alive(base), 60)
            # A look at Ray has just begun, and takes 10 s to be given up.
            began = eventually(lambda: taken_at and time.monotonic() - taken_at[-1] < 1 and time.monotonic(), 60)
            process.send_signal(signal.SIGTERM)
            returncode = process.wait(30)
            took_s = time.monotonic() - began
        finally:
            process.kill()

    assert returncode == 143, (tmp_path / "out").read_text()
    assert took_s < 8, took_s  # of a look that takes 10 s; about 2.5 s where nothing else runs


def _url(address: Path) -> str | None:
    try:
        return str(json.loads(address.read_text())["url"])
    except ValueError:
        return None


def _is_alive(base: str) -> bool:
    try:
        return httpx.get(f"{base}/healthz", timeout=2).is_success
    except httpx.HTTPError:
        return False
