"""A job that gives way."""

from __future__ import annotations

from pathlib import Path

from syncnorm.service.jobs.job import JobState
from tests.helpers.service.databases import fresh_sqlite
from tests.helpers.service.world import World


def test_event_names_the_job_that_needs_the_capacity(tmp_path: Path) -> None:
    with fresh_sqlite(tmp_path) as database:
        world = World(tmp_path, database)
        weak = world.run_until(world.submit(resources={"workers": 3}, labels={"works": "99"}), JobState.RUNNING)
        strong = world.submit(priority=9)
        world.step()

        events = world.store.history.events(weak.id)
        assert [event.message for event in events if event.kind == "preempt_requested"] == [
            f"{strong.id} has a higher priority and needs the capacity."
        ]
