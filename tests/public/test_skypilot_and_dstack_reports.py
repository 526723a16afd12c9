"""Reports about SkyPilot and dstack: jobs that are lost, stuck or run twice.

The service is the real one, over its store on SQLite; the cluster is a stand-in whose drivers do what a test says.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from syncnorm.service.integrations.ray_jobs import ClusterUnreachableError
from syncnorm.service.jobs.job import JobState
from syncnorm.trainer.contract.failure import FailureReason
from tests.helpers.service.databases import fresh_sqlite
from tests.helpers.service.world import World

# SkyPilot


# https://github.com/skypilot-org/skypilot/issues/4263
def test_skypilot_4263_none_of_many_jobs_submitted_at_once_fails(world: World) -> None:
    jobs = [world.submit(name=f"hi-{i}", labels={"phases": "training"}) for i in range(60)]

    for job in jobs:
        assert world.settle(job, steps=400).state is JobState.SUCCEEDED

    assert len(world.cluster.starts) == 60
    assert set(world.cluster.starts.values()) == {1}


class _LosesAnswers:
    """A cluster that starts what it is told to and then does not answer, the first two times."""

    def __init__(self, cluster: object) -> None:
        self._cluster = cluster
        self.lost = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._cluster, name)

    def start(self, *args: object, **kwargs: object) -> None:
        self._cluster.start(*args, **kwargs)  # type: ignore[attr-defined]
        if self.lost < 2:
            self.lost += 1
            raise ClusterUnreachableError("the answer was lost")


# https://github.com/skypilot-org/skypilot/issues/656
def test_skypilot_656_launch_whose_answer_was_lost_starts_nothing_twice(tmp_path: Path) -> None:
    def wrap(port: object, name: str) -> object:
        return _LosesAnswers(port) if name == "cluster" else port

    with fresh_sqlite(tmp_path) as database:
        world = World(tmp_path, database, wrap=wrap)
        job = world.settle(world.submit())

        assert (job.state, job.attempt) == (JobState.SUCCEEDED, 1)
        assert list(world.cluster.starts.values()) == [1]


# https://github.com/skypilot-org/skypilot/issues/5493
def test_skypilot_5493_jobs_start_in_the_order_of_their_submission(world: World) -> None:
    jobs = []
    for i in range(6):
        jobs.append(world.submit(name=f"cmd-{i}", resources={"workers": 4}, labels={"phases": "training"}))
        world.clock.advance(1)

    for job in jobs:
        world.settle(job)

    started = [world.job(job.id).started_at for job in jobs]
    assert all(started)
    assert started == sorted(started)  # type: ignore[type-var]


# https://github.com/skypilot-org/skypilot/issues/1146
@pytest.mark.parametrize("state", [JobState.QUEUED, JobState.STARTING])
def test_skypilot_1146_cancel_reaches_a_job_that_waits_or_starts(state: JobState, world: World) -> None:
    job = world.run_until(world.submit(labels={"phases": "none", "works": "99"}), state)

    world.apply_verb(job.id, "cancel")

    assert world.settle(job, steps=20).state is JobState.CANCELLED
    assert len(world.cluster.starts) == (state is JobState.STARTING)


# https://github.com/skypilot-org/skypilot/issues/4410
def test_skypilot_4410_job_cancelled_while_it_recovers_leaves_nothing_behind(world: World) -> None:
    job = world.submit(labels={"outcome": "silent.succeeded", "works": "3.99", "phases": "training"})
    world.run_until(job, JobState.RUNNING)
    world.cluster.kill(world.store.attempts.of_job(job.id)[0].id)
    while len(world.store.attempts.of_job(job.id)) < 2:
        world.step()

    world.apply_verb(job.id, "cancel")

    assert world.settle(job).state is JobState.CANCELLED
    assert world.cluster.drivers == {}


# dstack


# https://github.com/dstackai/dstack/issues/2677
def test_dstack_2677_job_that_was_starting_goes_on_after_a_restart_of_the_service(world: World) -> None:
    job = world.run_until(world.submit(labels={"phases": "none.training", "works": "3"}), JobState.STARTING)

    world.boot()

    assert world.settle(job).state is JobState.SUCCEEDED
    assert list(world.cluster.starts.values()) == [1]


# https://github.com/dstackai/dstack/issues/2068
def test_dstack_2068_cancelling_at_the_moment_of_the_launch_frees_the_hosts(world: World) -> None:
    job = world.submit(resources={"workers": 4}, labels={"phases": "none", "works": "99"})
    world.reconciler.tick()  # launched; its driver has not said a word yet
    assert world.job(job.id).state is JobState.STARTING

    world.apply_verb(job.id, "cancel")
    next_one = world.submit(resources={"workers": 4})

    assert world.settle(next_one).state is JobState.SUCCEEDED
    assert world.job(job.id).state is JobState.CANCELLED


# https://github.com/dstackai/dstack/issues/1976
def test_dstack_1976_job_that_dies_at_each_start_is_given_up_with_growing_waits(world: World) -> None:
    job = world.settle(world.submit(labels={"outcome": "silent", "phases": "none"}, limits={"max_failures": 3}))

    attempts = world.store.attempts.of_job(job.id)
    waits = [b.created_at - a.ended_at for a, b in itertools.pairwise(attempts) if a.ended_at]
    assert job.state is JobState.FAILED
    assert 3 <= len(attempts) <= 4
    assert waits == sorted(waits)


# https://github.com/dstackai/dstack/issues/4146
def test_dstack_4146_job_of_several_nodes_waits_as_a_whole(world: World) -> None:
    world.cluster.nodes = (("busy", 4.0, 0.0), ("idle", 2.0, 0.0))
    holds = world.run_until(world.submit(resources={"workers": 4}, labels={"works": "30"}), JobState.RUNNING)

    job = world.submit(resources={"workers": 4})
    world.step()

    assert world.job(job.id).state is JobState.QUEUED
    assert len(world.cluster.starts) == 1
    assert world.settle(job).state is JobState.SUCCEEDED
    assert world.job(holds.id).state is JobState.SUCCEEDED


# https://github.com/dstackai/dstack/issues/3608
def test_dstack_3608_job_waits_for_hosts_that_come_later(world: World) -> None:
    world.cluster.nodes = (("small", 1.0, 0.0),)
    job = world.submit(resources={"workers": 4})
    for _ in range(50):
        world.step()
    assert (world.job(job.id).state, world.job(job.id).attempt) == (JobState.QUEUED, 0)

    world.cluster.nodes = (("small", 1.0, 0.0), ("large", 8.0, 0.0))

    assert world.settle(job).state is JobState.SUCCEEDED


# https://github.com/dstackai/dstack/issues/2163
def test_dstack_2163_job_over_its_deadline_says_so(world: World) -> None:
    job = world.settle(world.submit(labels={"works": "99"}, limits={"deadline_s": 60}))

    assert (job.state, job.reason) == (JobState.FAILED, FailureReason.DEADLINE)
    assert "limits.deadline_s" in str(job.message)
