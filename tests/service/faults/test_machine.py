"""A random user, a random cluster and a service that dies, against what must always hold.

Hypothesis makes up the story: submit, ask, work, tick, crash, a Ray that forgets, lies or can't be reached, late words
of attempts that were given up. After every step the promises are checked; in the end everything is let run and settles.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from syncnorm.service.integrations.ray_jobs import Submission
from syncnorm.service.jobs.actions import ALLOWED, allowed
from syncnorm.service.jobs.attempt_ending import RayStatus
from syncnorm.service.jobs.exports.export import MOST_STARTS, OVER, Export
from syncnorm.service.jobs.job import ACTIVE, ARROWS, TERMINAL, JobState
from tests.helpers.amounts import LONG, amount
from tests.helpers.service.databases import fresh_sqlite
from tests.helpers.service.world import World

OUTCOMES = st.sampled_from(["succeeded", "user_error", "worker_lost", "silent.succeeded", "deaf", "silent"])
EXPORTS = st.sampled_from(["succeeded", "silent.succeeded", "user_error", "silent"])


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        self._open = ExitStack()
        self.world = World(folder, self._open.enter_context(fresh_sqlite(folder)))
        self.ids: list[str] = []
        self.finished: dict[str, tuple[JobState, int]] = {}
        self.zombies: list[tuple[str, str]] = []
        """(attempt, fence) of drivers that were cut off and may speak again."""

    def teardown(self) -> None:
        self.settle()
        self._open.close()
        self._folder.cleanup()

    @rule(
        outcome=OUTCOMES,
        exports=EXPORTS,
        workers=st.integers(1, 4),
        is_elastic=st.booleans(),
        priority=st.integers(-2, 2),
        works=st.sampled_from(["1", "3"]),
    )
    def submit(self, outcome: str, exports: str, workers: int, is_elastic: bool, priority: int, works: str) -> None:
        labels = {"outcome": outcome, "works": works, "exports": exports, "export_works": works}
        resources = {"workers": workers, "min_workers": 1 if is_elastic else None}
        job = self.world.submit(labels=labels, resources=resources, priority=priority)
        self.ids.append(job.id)

    @initialize(exports=EXPORTS, works=st.sampled_from(["1", "3"]))
    def one_has_succeeded(self, exports: str, works: str) -> None:
        """So that there is something to export again: few stories come to a success by themselves."""
        self.ids.append(self.world.succeed(labels={"exports": exports, "export_works": works}).id)

    @rule(steps=st.integers(1, 4))
    def all_goes_on(self, steps: int) -> None:
        for _ in range(steps):
            self.world.step()

    @precondition(lambda self: self.in_state(JobState.SUCCEEDED))
    @rule(data=st.data())
    def export(self, data: st.DataObject) -> None:
        self.world.export(self.world.job(data.draw(st.sampled_from(self.in_state(JobState.SUCCEEDED)))))

    @precondition(lambda self: self.world.cluster.exporters)
    @rule(data=st.data(), is_dead=st.booleans())
    def exporter_dies_or_is_called_ended(self, data: st.DataObject, is_dead: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.world.cluster.exporters)))
        if is_dead:
            self.world.cluster.kill(name)
        else:
            submissions = self.world.cluster.submissions
            submissions[name] = replace(submissions[name], status=RayStatus.ENDED)

    def in_state(self, state: JobState) -> list[str]:
        return [job_id for job_id in self.ids if self.world.job(job_id).state is state]

    def exports(self) -> list[Export]:
        return [export for job_id in self.ids for export in self.world.store.exports.of_job(job_id)]

    @precondition(lambda self: self.ids)
    @rule(data=st.data())
    def ask(self, data: st.DataObject) -> None:
        job = self.world.job(data.draw(st.sampled_from(self.ids)))
        verbs = [verb for verb in ALLOWED[job.state] if verb != "delete"]
        if verbs and job.stop is None:
            verb = data.draw(st.sampled_from(verbs))
            if job.is_terminal:
                del self.finished[job.id]
            self.world.apply_verb(job.id, verb)

    @rule(seconds=st.sampled_from([1, 5, 20, 100]))
    def time_passes(self, seconds: int) -> None:
        self.world.clock.advance(seconds)

    @rule()
    def tick(self) -> None:
        self.world.reconciler.tick()

    @rule()
    def work(self) -> None:
        self.world.cluster.work()

    @rule()
    def service_dies(self) -> None:
        self.world.boot()

    @rule(up=st.booleans())
    def ray_is_reachable(self, up: bool) -> None:
        self.world.cluster.reachable = up

    @rule(up=st.booleans())
    def mlflow_is_reachable(self, up: bool) -> None:
        self.world.tracker.reachable = up

    @rule()
    def ray_restarts_and_forgets(self) -> None:
        self.zombies += [(name, driver.launch.fence) for name, driver in self.world.cluster.drivers.items()]
        self.world.cluster.restart()

    @precondition(lambda self: self.world.cluster.drivers)
    @rule(data=st.data())
    def driver_dies(self, data: st.DataObject) -> None:
        self.world.cluster.kill(data.draw(st.sampled_from(sorted(self.world.cluster.drivers))))

    @precondition(lambda self: self.world.cluster.drivers)
    @rule(data=st.data())
    def ray_calls_a_living_driver_ended(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.world.cluster.drivers)))
        submissions = self.world.cluster.submissions
        submissions[name] = replace(submissions[name], status=RayStatus.ENDED)

    @precondition(lambda self: self.zombies)
    @rule(data=st.data())
    def given_up_attempt_speaks(self, data: st.DataObject) -> None:
        name, fence = data.draw(st.sampled_from(self.zombies))
        attempt = self.world.store.attempts.get(name)
        assert attempt is not None
        answer = self.world.store.reports.progress(name, fence, 30, 99, {"step": 99})
        assert (answer is None) == (attempt.ended_at is not None)

    @invariant()
    def one_live_attempt_a_job_and_only_in_active_states(self) -> None:
        for job_id in self.ids:
            job = self.world.job(job_id)
            live = [one for one in self.world.store.attempts.of_job(job_id) if one.ended_at is None]
            assert len(live) == (1 if job.state in ACTIVE else 0)
            assert all(one.number == job.attempt for one in live)

    @invariant()
    def no_attempt_is_started_twice(self) -> None:
        assert set(self.world.cluster.starts.values()) <= {1}

    @invariant()
    def never_more_than_the_cluster_has(self) -> None:
        held = [one.workers for one in self.world.store.attempts.unreleased()]
        assert sum(held) <= 4

    @invariant()
    def every_attempt_has_as_many_workers_as_its_job_may_have(self) -> None:
        for job_id in self.ids:
            job = self.world.job(job_id)
            sizes = [attempt.workers for attempt in self.world.store.attempts.of_job(job_id)]
            assert all(job.least_workers <= size <= job.workers for size in sizes)

    @invariant()
    def exports_are_asked_for_once_and_end_once(self) -> None:
        for export in self.exports():
            kinds = [
                event.kind
                for event in self.world.store.history.events(export.job_id, limit=1000)
                if event.kind.startswith("export_") and (event.data or {})["export"] == export.name
            ]
            assert kinds.count("export_queued") == 1
            assert kinds.count("export_started") == export.starts <= MOST_STARTS
            assert kinds.count("export_succeeded") + kinds.count("export_failed") == (export.state in OVER)

    @invariant()
    def finished_jobs_stay_as_they_are(self) -> None:
        for job_id in self.ids:
            job = self.world.job(job_id)
            if job.state in TERMINAL:
                assert self.finished.setdefault(job_id, (job.state, job.version)) == (job.state, job.version)

    @invariant()
    def history_has_only_legal_arrows_and_no_gaps(self) -> None:
        for job_id in self.ids:
            moves = self.world.arrows(job_id)
            assert all(move in ARROWS for move in moves)
            states = [JobState.QUEUED, *(target for _, target in moves)]
            assert [source for source, _ in moves] == states[:-1]
            assert self.world.job(job_id).state is states[-1]

    def settle(self) -> None:
        """With everything reachable again, every job that nobody paused ends, and nothing is left of it."""
        self.world.cluster.reachable = self.world.tracker.reachable = True
        before: list[int] = []
        quiet = 0
        while quiet < _STUCK:  # not so many steps in all: thirty jobs that are lost thrice each take long
            jobs = [self.world.job(job_id) for job_id in self.ids]
            for job in jobs:
                if "resume" in allowed(job):  # not one that is paused and about to be cancelled
                    self.world.apply_verb(job.id, "resume")
            exports = self.exports()
            if all(job.is_terminal for job in jobs) and all(export.released_at for export in exports):
                break
            versions = [one.version for one in (*jobs, *exports)]
            quiet = quiet + 1 if versions == before else 0
            before = versions
            self.world.step()
        for _ in range(6):
            self.world.step()
        for job_id in self.ids:
            self.world.check_settled(self.world.job(job_id))
        assert all(export.released_at for export in self.exports())
        assert not self.world.cluster.exporters


_STUCK = 200
"""Steps without any move of a job or export, while one is not over: longer than any lease and pause before a retry."""


def test_promises_hold_whatever_happens() -> None:
    run_state_machine_as_test(Machine, settings=settings(max_examples=12, stateful_step_count=25))


@pytest.mark.chaos
@pytest.mark.parametrize("part", range(5))
def test_promises_hold_whatever_happens_long(part: int) -> None:
    """1,500 stories with all the parts, each of which makes up its own."""
    run_state_machine_as_test(Machine, settings=settings(LONG, max_examples=amount(300), stateful_step_count=60))


def test_story_ends_though_a_paused_job_was_asked_to_cancel() -> None:
    """A resume is refused then, for a cancel can't be undone."""
    machine = Machine()
    job_id = machine.world.submit().id
    machine.ids.append(job_id)
    machine.world.apply_verb(job_id, "pause")
    machine.tick()
    machine.world.apply_verb(job_id, "cancel")

    machine.settle()

    assert machine.in_state(JobState.CANCELLED) == [job_id]
    machine.teardown()


@pytest.mark.parametrize("planted", [False, True])
def test_relaunching_on_rays_word_alone_would_be_noticed(planted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted bug: an attempt is given up as soon as Ray calls it ended, though it lives and reports."""
    if planted:
        monkeypatch.setattr(
            "syncnorm.service.jobs.attempt_ending._is_dead", lambda _attempt, seen, _rules: seen.ray is RayStatus.ENDED
        )
    machine = Machine()
    job_id = machine.world.submit(labels={"works": "99"}).id
    machine.world.step()
    machine.world.step()

    machine.world.cluster.submissions[f"{job_id}-1"] = Submission(RayStatus.ENDED)
    for _ in range(6):
        machine.world.reconciler.tick()
        machine.world.clock.advance(5)

    living = len(machine.world.cluster.drivers)
    machine.teardown()
    assert living == (2 if planted else 1)


@pytest.mark.parametrize("planted", [False, True])
def test_scheduler_that_starts_what_does_not_fit_would_be_noticed(
    planted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted bug: there is always room for one more."""
    if planted:
        monkeypatch.setattr("syncnorm.service.scheduling.capacity.Capacity.largest", lambda _self, shape: shape.workers)
        monkeypatch.setattr("syncnorm.service.scheduling.capacity.Capacity.without", lambda self, _shape: self)
    machine = Machine()
    machine.ids += [machine.world.submit(resources={"workers": 3}).id for _ in range(2)]
    machine.world.step()

    with pytest.raises(AssertionError) if planted else nullcontext():
        machine.never_more_than_the_cluster_has()

    machine.teardown()
