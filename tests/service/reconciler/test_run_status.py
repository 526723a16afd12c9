"""The MLflow run gets the status of its job, also after MLflow refused it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from syncnorm.service.backend_errors import RefusedError
from syncnorm.service.jobs.job import JobState
from tests.helpers.service.databases import fresh_sqlite
from tests.helpers.service.world import TICK_S, World


class Refusals:
    """Takes the place of the tracker's `set_status`, and refuses while `on`."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self._inner = world.tracker.set_status
        self.on, self.count = True, 0
        monkeypatch.setattr(world.tracker, "set_status", self)

    def __call__(self, run_id: str, status: str, note: str) -> None:
        if self.on:
            self.count += 1
            raise RefusedError("MLflow refused runs/update: the run must be active", 400)
        self._inner(run_id, status, note)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with fresh_sqlite(tmp_path) as database:
        yield World(tmp_path, database)


@pytest.fixture
def refusals(world: World, monkeypatch: pytest.MonkeyPatch) -> Refusals:
    return Refusals(world, monkeypatch)


def step(world: World, seconds: float) -> None:
    for _ in range(int(seconds / TICK_S)):
        world.step()


def status(world: World, job_id: str) -> str:
    run_id = world.job(job_id).run_id
    assert run_id is not None
    return world.tracker.status[run_id]


def test_refused_status_is_set_once_mlflow_takes_it(world: World, refusals: Refusals) -> None:
    job_id = world.submit().id
    step(world, 120)

    assert (world.job(job_id).state, status(world, job_id)) == (JobState.SUCCEEDED, "RUNNING")
    refusals.on = False
    world.boot()
    step(world, 120)

    assert status(world, job_id) == "FINISHED"
    world.check_settled(world.job(job_id))


def test_refused_status_is_tried_every_minute_for_a_day(world: World, refusals: Refusals) -> None:
    job_id = world.submit().id
    step(world, 120)
    refusals.count = 0

    step(world, 600)
    in_ten_minutes = refusals.count
    world.clock.advance(90_000)
    step(world, 120)
    refusals.count = 0
    step(world, 600)

    assert in_ten_minutes in (9, 10, 11)
    assert refusals.count == 0
    assert job_id not in world.store.workload.unsettled()
