"""A service in this process over fakes: store on SQLite, reconciler, cluster, tracker and a clock, all in hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from syncnorm.service.jobs.actions import Verb, apply_verb
from syncnorm.service.jobs.admission import new_job
from syncnorm.service.jobs.attempt_ending import RayStatus, Rules
from syncnorm.service.jobs.exports.export import Export
from syncnorm.service.jobs.job import RUN_STATUS, Job, JobState, NewEvent
from syncnorm.service.reconciler.backends import AttemptEnvironment, Backends
from syncnorm.service.reconciler.reconciler import Reconciler
from syncnorm.service.scheduling.schedule import Policy
from syncnorm.service.store import Store, StoredResponse
from syncnorm.service.store.database import Database
from syncnorm.trainer.contract.spec import ExportSpec
from syncnorm.trainer.contract.spec_reader import read_spec
from tests.helpers.fakes import Clock, FakeCluster, FakeStudyRuns, FakeTracker

TICK_S = 5.0


@dataclass
class World:
    folder: Path
    database: Database
    clock: Clock = field(default_factory=Clock)
    tracker: FakeTracker = field(default_factory=FakeTracker)
    study_runs: FakeStudyRuns = field(default_factory=FakeStudyRuns)
    wrap: Callable[[Any, str], Any] = lambda port, _name: port
    """Puts something between the reconciler and its ports."""

    def __post_init__(self) -> None:
        self.store = Store(self.database, self.clock)
        self.cluster = FakeCluster(self.store)
        self.boot()

    def boot(self) -> None:
        """A new process of the service, which knows nothing but what is stored."""
        backends = Backends(
            self.wrap(self.store, "store"),
            self.wrap(self.cluster, "cluster"),
            self.wrap(self.tracker, "tracker"),
            AttemptEnvironment(str(self.folder), "http://nobody", "http://nobody"),
            on_change=lambda _job_id: None,
        )
        self.reconciler = Reconciler(backends, rules=Rules(startup_timeout_s=200.0), policy=Policy())

    def submit(self, **spec: Any) -> Job:
        limits = {"grace_s": 10} | spec.pop("limits", {})
        data = {
            "name": "job",
            "model": {"name": "resnet"},
            "data": {"name": "digits", "batch_size": 32},
            "resources": {"workers": 2},
            "limits": limits,
        }
        job = new_job(read_spec(data | spec), "ann", self.clock())
        self.store.jobs.add(job, NewEvent("queued", "Submitted."))
        return job

    def apply_verb(self, job_id: str, verb: Verb) -> None:
        job = self.job(job_id)
        change = apply_verb(job, verb, self.clock())
        assert change is not None
        assert self.store.jobs.move(job, change.to, change.changes, event=change.event)

    def job(self, job_id: str) -> Job:
        job = self.store.jobs.get(job_id)
        assert job is not None
        return job

    def step(self) -> None:
        self.reconciler.tick()
        self.cluster.work()
        self.clock.advance(TICK_S)

    def succeed(self, **spec: Any) -> Job:
        """A job that has succeeded, and nothing of which is left."""
        job = self.submit(**spec)
        while not self.job(job.id).is_terminal or self.store.attempts.unreleased():
            self.step()
        return self.job(job.id)

    def run_until(self, job: Job, *states: JobState, steps: int = 200) -> Job:
        """The job once it is in one of these states."""
        for _ in range(steps):
            if self.job(job.id).state in states:
                return self.job(job.id)
            self.step()
        raise AssertionError(f"{self.job(job.id).state} after {steps} steps")

    def settle(self, job: Job, *, steps: int = 200) -> Job:
        """The job once it is over, and nothing of it is left anywhere."""
        for _ in range(steps):
            if self.job(job.id).is_terminal and not self.store.attempts.unreleased():
                self.check_settled(self.job(job.id))
                return self.job(job.id)
            self.step()
        raise AssertionError(f"{self.job(job.id).state} after {steps} steps")

    def export(self, job: Job, **section: Any) -> Export:
        """The wish for a later export, as the API stores it."""
        section = ExportSpec(**section).model_dump(mode="json")
        stored = self.store.exports.add(job, section, lambda _: StoredResponse("", {}))
        assert isinstance(stored, Export)
        return stored

    def arrows(self, job_id: str) -> list[tuple[JobState, JobState]]:
        """The moves of a job, from its events."""
        moves = [event for event in self.store.history.events(job_id, limit=1000) if "from" in (event.data or {})]
        return [(JobState(str((event.data or {})["from"])), JobState(event.kind)) for event in moves]

    def check_settled(self, job: Job) -> None:
        """Nothing of a finished job is left anywhere, and everything says the same."""
        assert job.is_terminal
        assert (job.finished_at is not None, job.stop) == (True, None)
        attempts = self.store.attempts.of_job(job.id)
        assert [attempt.number for attempt in attempts] == list(range(1, job.attempt + 1))
        assert all(attempt.ended_at and attempt.released_at for attempt in attempts)
        assert all(self.cluster.starts[attempt.id] <= 1 for attempt in attempts)
        mine = [self.cluster.submissions.get(attempt.id) for attempt in attempts]
        assert all(item is None or item.status is RayStatus.ENDED for item in mine)
        if job.run_id is not None:
            assert self.tracker.status[job.run_id] == RUN_STATUS[job.state]
            assert self.tracker.runs[job.id] == job.run_id
