"""What owners used is what was allocated, across restarts and deleted jobs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from syncnorm.service.jobs.admission import new_job
from syncnorm.service.jobs.job import NewEvent
from syncnorm.service.telemetry.metrics import Metrics
from syncnorm.trainer.contract.spec_reader import read_spec
from tests.helpers.service.databases import fresh_sqlite
from tests.helpers.service.world import World
from tests.service.store.test_store import SPEC


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with fresh_sqlite(tmp_path) as database:
        yield World(tmp_path, database)


def test_usage_of_all_owners_together_is_what_was_allocated(world: World) -> None:
    world.cluster.nodes = (("node-1", 16.0, 8.0),)
    for number in range(12):
        job = new_job(read_spec(SPEC), f"o{number % 3}", world.clock())
        labels = {"works": str(number % 4 + 1), "outcome": ("succeeded", "silent", "user_error")[number % 3]}
        spec = job.spec.with_section("labels", labels)
        job = replace(job, workers=1 + number % 2, gpus_per_worker=number % 3, labels=labels, spec=spec)
        world.store.jobs.add(job, NewEvent("queued", ""))
    allocated = 0.0

    for step in range(60):
        world.reconciler.tick()
        attempts = world.store.attempts.unreleased()
        held = [one.workers * world.job(one.job_id).gpus_per_worker for one in attempts]
        world.cluster.work()
        world.clock.advance(5)
        allocated += 5 * sum(held)
        if step % 7 == 0:
            world.boot()

    used = world.store.attempts.usage()
    assert allocated > 100
    assert sum(gpu_s for _, gpu_s in used.values()) == pytest.approx(allocated)
    assert set(used) == {"o0", "o1", "o2"}


def test_usage_outlives_a_restart_and_the_job(world: World) -> None:
    job = world.submit()
    for _ in range(8):
        world.step()
    before = world.store.attempts.usage()

    assert world.store.jobs.delete(world.job(job.id))
    metrics = Metrics()  # a new process
    metrics.watch(world.store, world.reconciler)

    assert before["ann"][0] > 0
    assert world.store.attempts.usage() == before
    assert f'syncnorm_cpu_seconds_total{{owner="ann"}} {before["ann"][0]}' in metrics.text().decode()
