"""An elastic job starts with the workers there is room for, and whoever looks is told how many."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from syncnorm.service.jobs.job import Job
from syncnorm.service.scheduling import growth
from syncnorm.trainer.contract.plan import NodeCapacity, findings, fits
from syncnorm.trainer.contract.spec_reader import read_spec
from syncnorm.trainer.errors import SpecError
from tests.helpers.service.api import SPEC, api
from tests.helpers.service.databases import fresh_sqlite
from tests.helpers.service.world import World
from tests.service.api.test_api import problem

ELASTIC = {"workers": 4, "min_workers": 1}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with fresh_sqlite(tmp_path) as database:
        yield World(tmp_path, database)


def shrunk_then_whole(world: World) -> Job:
    """A job whose first attempt has one worker and is lost, and whose second has all four."""
    other = world.submit(resources={"workers": 3}, labels={"works": "4"})
    world.step()
    labels = {"works": "9", "outcome": "silent.succeeded"}
    job = world.submit(resources=ELASTIC, labels=labels, limits={"max_failures": 3})
    for _ in range(80):
        world.step()
        if world.job(job.id).is_terminal:
            assert world.job(other.id).is_terminal
            return world.job(job.id)
    pytest.fail(f"not over: {world.job(job.id)}")


def test_each_attempt_says_how_many_workers_it_has(world: World) -> None:
    job = shrunk_then_whole(world)

    assert [attempt.workers for attempt in world.store.attempts.of_job(job.id)] == [1, 4]
    assert (job.state, job.world_size, job.workers) == ("succeeded", 4, 4)


def test_launch_file_carries_the_number_and_the_spec_stays(world: World) -> None:
    world.submit(resources={"workers": 3}, labels={"works": "9"})
    world.step()
    job = world.submit(resources=ELASTIC)
    world.step()

    launch = world.cluster.drivers[f"{job.id}-1"].launch

    assert launch.world_size == 1
    assert launch.spec.resources.workers == 4


def test_launch_file_says_how_long_the_service_waits_for_the_first_step(world: World) -> None:
    job = world.submit()
    world.step()

    launch = world.cluster.drivers[f"{job.id}-1"].launch

    assert launch.rendezvous_timeout_s == 100  # half of it: the attempt names the rank that did not come


def test_change_of_the_workers_is_an_event_and_a_mark_in_mlflow(world: World) -> None:
    job = shrunk_then_whole(world)

    events = [event for event in world.store.history.events(job.id, limit=1000) if event.kind == "workers_changed"]

    step = world.store.attempts.of_job(job.id)[1].resume_step
    assert [event.data for event in events] == [
        {"attempt": 1, "workers": 1, "before": 4, "step": 0},
        {"attempt": 2, "workers": 4, "before": 1, "step": step},
    ]
    changes = f"1 from step 0, 4 from step {step}"
    assert world.tracker.sizes[job.id] == {"syncnorm.world_size": "4", "syncnorm.world_size_changes": changes}


def test_job_with_all_its_workers_has_no_such_event(world: World) -> None:
    job = world.succeed(resources=ELASTIC)

    assert world.job(job.id).world_size == 4
    assert not [event for event in world.store.history.events(job.id) if event.kind == "workers_changed"]
    assert world.tracker.sizes[job.id] == {"syncnorm.world_size": "4"}


def test_usage_counts_the_workers_there_were(world: World) -> None:
    world.submit(resources={"workers": 3}, labels={"works": "99"})
    job = world.submit(resources=ELASTIC, labels={"works": "99"})
    world.step()

    (attempt,) = world.store.attempts.of_job(job.id)
    cpu_s, _ = world.store.attempts.usage()["ann"]

    assert attempt.workers == 1
    assert cpu_s == 4 * (world.clock() - attempt.created_at).total_seconds()


def test_views_show_the_workers(tmp_path: Path) -> None:
    with api(tmp_path) as (client, world):
        world.submit(resources={"workers": 3}, labels={"works": "9"})
        world.step()
        job_id = client.post("/v1/jobs", json=SPEC | {"resources": ELASTIC}).json()["id"]
        before = client.get(f"/v1/jobs/{job_id}").json()
        world.step()

        assert before["world_size"] is None
        assert client.get(f"/v1/jobs/{job_id}").json()["world_size"] == 1
        assert client.get(f"/v1/jobs/{job_id}/attempts").json()["items"][0]["workers"] == 1


def test_job_that_only_fits_with_fewer_workers_is_taken(tmp_path: Path) -> None:
    with api(tmp_path) as (client, _):  # a cluster of 4 CPUs
        taken = client.post("/v1/jobs", json=SPEC | {"resources": {"workers": 8, "min_workers": 4}})
        refused = client.post("/v1/jobs", json=SPEC | {"resources": {"workers": 8, "min_workers": 5}})

        assert taken.status_code == 201
        assert problem(refused, 422, "invalid_spec")["errors"][0]["pointer"] == "/resources/workers"


@pytest.mark.parametrize(
    ("resources", "group", "path", "text"),
    [
        ({"workers": 2, "min_workers": 3}, "world", "resources", "min_workers must not exceed workers, got 3 > 2"),
        ({"workers": 4, "min_workers": 1}, 2, "resources.min_workers", "must be a multiple of norm.group"),
        ({"workers": 5, "min_workers": 2}, 2, "resources.workers", "must be a multiple of norm.group"),
    ],
)
def test_workers_that_can_not_be_chosen_from_are_refused(
    resources: dict[str, int], group: Any, path: str, text: str
) -> None:
    with pytest.raises(SpecError) as refused:
        read_spec(SPEC | {"resources": resources, "norm": {"kind": "sync_batch", "group": group}})

    (found,) = refused.value.problems
    assert found.path == path
    assert text in found.message


@pytest.mark.parametrize(("kind", "warned"), [("batch", True), ("sync_batch", False), ("group", False)])
def test_plan_warns_where_fewer_workers_change_the_statistics(kind: str, warned: bool) -> None:
    spec = read_spec(SPEC | {"resources": ELASTIC, "norm": {"kind": kind}})

    assert ("elastic_statistics" in {finding.code for finding in findings(spec, kind)}) is warned


@pytest.mark.parametrize(("free", "total", "when"), [(2, 8, "now"), (1, 8, "later"), (1, 1, "never")])
def test_plan_says_when_the_least_workers_fit(free: float, total: float, when: str) -> None:
    spec = read_spec(SPEC | {"resources": {"workers": 4, "min_workers": 2}})

    assert fits(spec, [NodeCapacity("n", total, 0.0, free, 0.0)]) == when


def test_running_job_grows_once_room_has_lasted_and_goes_on_from_its_checkpoint(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growth, "LEAST_TRAINED_S", 120.0)
    other = world.submit(resources={"workers": 3}, labels={"works": "4"})
    world.step()
    job = world.submit(resources=ELASTIC, labels={"works": "60"})
    while not world.job(job.id).is_terminal:
        world.step()

    first, second = world.store.attempts.of_job(job.id)
    assert (first.workers, second.workers) == (1, 4)
    assert (first.outcome, second.outcome, world.job(job.id).failures) == ("stopped", "succeeded", 0)
    assert second.resume_step == first.step
    (asked,) = [event for event in world.store.history.events(job.id, limit=1000) if event.kind == "resize_requested"]
    assert asked.data is not None
    assert (asked.data["workers"], asked.data["to"]) == (1, 4)
    assert asked.data["trained_s"] >= 120
    assert asked.data["settled_s"] >= growth.SETTLED_S
    assert "instead of 1 for" in asked.message
    world.check_settled(world.job(job.id))
    assert world.job(other.id).is_terminal


def test_job_that_runs_on_fewer_workers_explains_what_it_waits_for(tmp_path: Path) -> None:
    with api(tmp_path) as (client, world):
        world.submit(resources={"workers": 3}, labels={"works": "4"})
        world.step()
        job = world.submit(resources=ELASTIC, labels={"works": "60"})
        for _ in range(4):
            world.step()

        def explanation() -> dict[str, Any]:
            found: dict[str, Any] = client.get(f"/v1/jobs/{job.id}/explain").json()
            return found

        crowded = explanation()
        while len(world.store.attempts.unreleased()) > 1:
            world.step()
        world.step()
        alone = explanation()

    assert crowded["message"] == (
        "The job is training on 1 of 4 workers; there is no free capacity that is not already claimed by a queued job."
    )
    assert alone["message"].startswith("The job is training on 1 of 4 workers; there is capacity for 4.")
    assert alone["shortfall"] == {"workers": 1.0, "asked_for": 4.0, "room_for": 4.0}
