"""A host that is cut off, and clocks that jump: nothing is doubled or stuck, and no word of a zombie is taken."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from syncnorm.service.jobs.attempt_ending import RayStatus
from syncnorm.service.jobs.job import JobState, NewEvent
from syncnorm.service.store.tables.reports import ReportTable
from syncnorm.trainer.contract.protocol import RESULT_FILE, CheckpointFact, LogLine, Result
from tests.helpers.service.databases import fresh_sqlite
from tests.helpers.service.world import World

LEASE_S = 30


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with fresh_sqlite(tmp_path) as database:
        yield World(tmp_path, database)


class CutOff:
    """A driver on a host that neither the service nor Ray's head reaches: Ray calls it failed after a minute, and it
    works on all the same (ray #65025)."""

    def __init__(self, world: World, attempt_id: str) -> None:
        self.world = world
        self.id = attempt_id
        self.driver = world.cluster.drivers.pop(attempt_id)
        self.since = world.clock()
        self.accepted = 0

    def tick(self) -> None:
        if (self.world.clock() - self.since).total_seconds() > 64:
            submissions = self.world.cluster.submissions
            submissions[self.id] = replace(submissions[self.id], status=RayStatus.ENDED)
        self.world.reconciler.tick()
        self.world.cluster.work()
        self.world.clock.advance(5)

    def speak(self) -> None:
        """The cut is over: everything it has to say, its success included."""
        store, fence = self.world.store, self.driver.launch.fence
        fact = CheckpointFact(fence=fence, path="zombie", step=10**6, epoch=0, digest="0", size_bytes=1)
        result = Result(fence=fence, outcome="succeeded", step=10**6)
        (self.driver.folder / RESULT_FILE).write_text(result.model_dump_json())
        answers = [
            store.reports.heartbeat(self.id, fence, LEASE_S, "finalizing", 10**6),
            store.reports.progress(self.id, fence, LEASE_S, 10**6, {"step": 10**6}),
            store.reports.add_checkpoint(self.id, fact),
            store.reports.add_event(self.id, fence, NewEvent("note", "zombie")),
            store.reports.exit(self.id, fence, result.model_dump(mode="json")),
            store.reports.add_lines(
                self.id, fence, [LogLine(rank=0, seq=9, at="now", level="INFO", text="last words")]
            ),
        ]
        self.accepted += sum(answer is not None for answer in answers)


def cut(world: World, cut_s: float) -> tuple[JobState, int, int]:
    """(state in the end, words of the zombie that were accepted, attempts)."""
    job = world.submit(labels={"works": "12"})
    for _ in range(4):
        world.step()
    zombie = CutOff(world, f"{job.id}-1")
    began = world.clock()
    while (world.clock() - began).total_seconds() < cut_s:
        zombie.tick()
        if world.job(job.id).attempt == 2:
            assert (world.clock() - began).total_seconds() >= LEASE_S - 5
    replaced = world.job(job.id).attempt == 2 or world.job(job.id).state is JobState.QUEUED
    if replaced:
        zombie.speak()
    else:
        world.cluster.drivers[zombie.id] = zombie.driver  # nobody noticed; it goes on
    for _ in range(60):
        world.step()
    world.check_settled(world.job(job.id))
    assert "zombie" not in [fact.path for fact in world.store.history.checkpoints(job.id)]
    return world.job(job.id).state, zombie.accepted, world.job(job.id).attempt


@pytest.mark.parametrize(("cut_s", "attempts"), [(10, 1), (45, 1), (90, 2), (180, 2)])
def test_zombie_of_a_partition_is_believed_nothing(world: World, cut_s: float, attempts: int) -> None:
    assert cut(world, cut_s) == (JobState.SUCCEEDED, 0, attempts)


@pytest.mark.chaos
def test_zombies_of_many_partitions_are_believed_nothing(tmp_path: Path) -> None:
    chance = random.Random(6)
    for number in range(200):
        folder = tmp_path / str(number)
        folder.mkdir()
        with fresh_sqlite(folder) as database:
            state, accepted, _ = cut(World(folder, database), chance.uniform(5, 400))
        assert (state, accepted) == (JobState.SUCCEEDED, 0)


def test_service_that_forgets_to_check_the_fence_would_be_noticed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted bug: the words of an attempt count although it was given up."""
    monkeypatch.setattr(ReportTable, "_live", lambda self, c, name, fence: self._fenced(c, name, fence))

    with pytest.raises(AssertionError):
        assert cut(world, 90) == (JobState.SUCCEEDED, 0, 2)


def _jump(world: World, jumps: list[float]) -> list[int]:
    """Jobs under a clock that jumps at every other step; how many attempts each took."""
    ids = [world.submit(labels={"works": "6"}, resources={"workers": 1}).id for _ in range(len(jumps))]
    for seconds in jumps:
        world.step()
        world.clock.advance(seconds)
        world.step()
    for _ in range(200):
        world.step()
        if all(world.job(job_id).is_terminal for job_id in ids):
            break
    for _ in range(4):
        world.step()
    for job_id in ids:
        assert world.job(job_id).state is JobState.SUCCEEDED
        world.check_settled(world.job(job_id))
    return [world.job(job_id).attempt for job_id in ids]


def test_jumps_of_the_clock_relaunch_nothing(world: World) -> None:
    assert _jump(world, [3600.0, -3600.0, -3600.0, 7200.0]) == [1] * 4


@pytest.mark.chaos
def test_many_jumps_of_the_clock_relaunch_nothing(tmp_path: Path) -> None:
    chance = random.Random(12)
    for number in range(50):
        folder = tmp_path / str(number)
        folder.mkdir()
        with fresh_sqlite(folder) as database:
            assert set(_jump(World(folder, database), [chance.uniform(-3600, 3600) for _ in range(4)])) == {1}


def test_dead_attempt_is_found_soon_after_the_clock_was_set_back(world: World) -> None:
    job = world.submit(labels={"works": "99", "outcome": "silent.succeeded"})
    world.step()
    world.step()

    world.clock.advance(-3600)
    world.cluster.kill(f"{job.id}-1")
    before = world.clock()
    for _ in range(40):
        world.step()
        if world.job(job.id).state is JobState.QUEUED or world.job(job.id).attempt == 2:
            break

    assert (world.clock() - before).total_seconds() <= 90


def test_lease_from_before_the_clock_was_set_back_holds_nobody_up(world: World) -> None:
    assert world.store.leases.take("a", 15) is not None
    assert world.store.leases.take("b", 15) is None

    world.clock.advance(-3600)

    assert world.store.leases.take("b", 15) is not None
