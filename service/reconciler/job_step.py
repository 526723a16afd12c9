"""One tick's work on one job: observe, decide, apply, until there is nothing to do now."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from syncnorm.service.backend_errors import RefusedError, UnreachableError
from syncnorm.service.jobs.attempt_ending import Observation, RayStatus, Rules, may_be_over
from syncnorm.service.jobs.instants import after
from syncnorm.service.jobs.job import RUN_STATUS, TERMINAL, Attempt, Job, NewEvent
from syncnorm.service.jobs.lifecycle import Move, StopOnRay, SubmitToRay, decide, refused
from syncnorm.service.reconciler.backends import Backends, Tick, attempt_token
from syncnorm.service.reconciler.isolation import Isolation
from syncnorm.service.reconciler.run_status import RunStatus
from syncnorm.service.scheduling.queue import JobQueue
from syncnorm.service.storage import attempt_files as files
from syncnorm.service.storage.weight_sources import weight_access
from syncnorm.trainer.contract import protocol
from syncnorm.trainer.errors import StorageError

logger = logging.getLogger(__name__)

LAUNCH_LEASE_S = 60.0
"""Lease of a new attempt: the first message may take as long as Ray needs to start a driver on a busy host."""


ALL_JOBS_S = 20.0
"""Time of a tick for all jobs, so that other work is not delayed."""
_SLOW_S = 1.0


class JobStep:
    """Carries out what `decide` returns, and has the MLflow run follow."""

    def __init__(self, backends: Backends, rules: Rules, queue: JobQueue, items: Isolation) -> None:
        self._backends = backends
        self._rules = rules
        self._queue = queue
        self._items = items
        self._run_status = RunStatus(backends)
        self._outage_log = backends.outage_log
        self._slow_at: dict[str, float] = {}
        self._launched_at: datetime | None = None

    def advance_all(self, jobs: Iterable[Job], attempts: Mapping[str, Attempt], tick: Tick) -> None:
        """Advance every job until there is nothing to do for it now.

        Jobs that took long lately come last, and no tick takes twice its time for jobs: the remaining ones come first
        in the next tick.
        """
        until = time.monotonic() + ALL_JOBS_S
        turns = in_turn(jobs, self._slow_at)
        self._slow_at = {job.id: self._slow_at[job.id] for job in turns if job.id in self._slow_at}
        for job in turns:
            tick.check()
            if time.monotonic() > until:
                logger.warning("tick ran out of time for jobs; the remaining ones come first in the next tick")
                return
            self.advance(job, attempts.get(job.id), tick)

    def advance(self, job: Job, attempt: Attempt | None, tick: Tick) -> None:
        """Decide and apply until there is nothing to do now. A job that raises repeatedly is set aside."""
        began, lost_s = time.monotonic(), self._backends.circuit.lost_s
        last = self._items.attempt(
            "job",
            job.id,
            lambda: self._advance(job, attempt, tick),
            self._backends.giving_up(job.id, tick),
        )
        if last is not None:
            self._items.attempt("run_status", job.id, lambda: self._run_status.settle(last))
        if time.monotonic() - began > _SLOW_S or self._backends.circuit.lost_s > lost_s:
            self._slow_at[job.id] = time.monotonic()

    def _advance(self, job: Job, attempt: Attempt | None, tick: Tick) -> Job | None:
        """The job as it is now; None: part of it has to wait."""
        for _ in range(4):  # starting, running, finalizing, succeeded: no job has more to do at once
            decision = decide(job, attempt, self._observe(attempt, tick), self._rules)
            if decision is None:
                break
            moved = self._apply(job, attempt, decision, tick)
            if moved is None:
                return None
            job, attempt = moved
        return job

    def _observe(self, attempt: Attempt | None, tick: Tick) -> Observation:
        observation = self._observe_cluster(attempt, tick)
        if attempt is None or self._launched_at is None:
            return observation
        return replace(observation, others_launch=self._launched_at >= attempt.created_at)

    def _observe_cluster(self, attempt: Attempt | None, tick: Tick) -> Observation:
        now, view = self._backends.store.now(), tick.view
        if attempt is None:
            return Observation(now, session=view.session if view else None)
        if view is None:
            return self._with_result(attempt, Observation(now))
        submission = view.submissions.get(attempt.id)
        node_id = submission.node_id if submission else None
        observation = Observation(
            now,
            ray=submission.status if submission else RayStatus.UNKNOWN,
            ray_message=submission.message if submission else "",
            session=view.session,
            node_gone=node_id is not None and node_id not in {node.node_id for node in view.nodes},
        )
        return self._with_result(attempt, observation)

    def _with_result(self, attempt: Attempt, observation: Observation) -> Observation:
        if not may_be_over(attempt, observation):
            return observation  # its exit message arrives anyway, and each read of a bucket costs a request
        folder = self._backends.environment.folder(attempt)
        try:
            return replace(
                observation, result=self._backends.storage.ask(lambda: files.read_result(folder, attempt.fence))
            )
        except StorageError:
            return replace(observation, storage_away=True)

    def _apply(
        self, job: Job, attempt: Attempt | None, decision: Move | SubmitToRay | StopOnRay, tick: Tick
    ) -> tuple[Job, Attempt | None] | None:
        """Carry out a decision; None: not possible now, the next tick tries again."""
        if isinstance(decision, Move):
            return self._move(job, attempt, decision, tick)
        assert attempt is not None
        what = f"{'launch' if isinstance(decision, SubmitToRay) else 'end'} of {attempt.id}"
        try:
            if isinstance(decision, SubmitToRay):
                launched = self._launch(job, attempt, tick)
                self._outage_log.recovered(what)
                return launched
            self._backends.circuit.ask("ray", lambda: self._backends.dispatcher.end(attempt.id))
        except RefusedError as error:
            if isinstance(decision, SubmitToRay):
                return self._move(job, attempt, refused(job, str(error), self._backends.store.now()), tick)
            logger.warning("Ray refused to stop a submission", extra={"what": what, "error": str(error)})
        except (UnreachableError, StorageError) as error:
            self._outage_log.failed(
                what,
                "launch or stop postponed: Ray, MLflow or the storage is unavailable; retrying on the next tick",
                what=what,
                error=str(error),
            )
            return None
        self._outage_log.recovered(what)
        store = self._backends.store
        noted = {"stop_sent_at": store.now(), "reason": decision.reason, "message": decision.message}
        store.attempts.note(attempt.id, noted, tick.token)
        return None

    def _move(self, job: Job, attempt: Attempt | None, move: Move, tick: Tick) -> tuple[Job, Attempt | None] | None:
        changes = dict(move.changes)
        if move.to in TERMINAL and self._run_status.update(replace(job, state=move.to, **changes)):
            changes["run_status"] = RUN_STATUS[move.to]
        event = NewEvent(move.to.value, move.message, _event_data(job, changes))
        moved = self._backends.store.jobs.move(
            job, move.to, changes, event=event, attempt_changes=move.attempt_changes, lease=tick.token
        )
        if moved is None:
            return None
        self._queue.note(moved)
        self._backends.announce(job, moved)
        ended = attempt is None or move.attempt_changes.get("ended_at") is not None
        return moved, None if ended else attempt

    def _launch(self, job: Job, attempt: Attempt, tick: Tick) -> tuple[Job, Attempt] | None:
        assert tick.view is not None
        store, environment, circuit = self._backends.store, self._backends.environment, self._backends.circuit
        known, note = store.attempts.of_job(job.id), self._run_status.note(job)
        run = circuit.ask("mlflow", lambda: self._backends.tracker.run_for(job, known, note))
        store.jobs.note(job, {"experiment_id": run.experiment_id, "run_id": run.run_id})
        if attempt.session is None:
            attempt = replace(attempt, session=tick.view.session)
            if not store.attempts.note(attempt.id, {"session": attempt.session}, tick.token):
                return None
        folder, launch = environment.folder(attempt), self._launch_file(job, attempt, run.run_id)
        self._backends.storage.ask(lambda: files.write_launch(folder, launch))
        submission = attempt.id
        circuit.ask("ray", lambda: self._backends.dispatcher.start(submission, folder))
        now = store.now()
        noted: dict[str, Any] = {
            "submitted_at": now,
            "lease_expires_at": max(attempt.lease_expires_at, after(now, LAUNCH_LEASE_S)),
        }
        if not store.attempts.note(attempt.id, noted, tick.token):
            return None
        self._launched_at = now
        self._backends.on_change(job.id)
        job = replace(job, experiment_id=run.experiment_id, run_id=run.run_id)
        # With its new lease: without it, a launch that waited longer than the first lease would look dead at once.
        return job, replace(attempt, **noted)

    def _launch_file(self, job: Job, attempt: Attempt, run_id: str) -> protocol.Launch:
        environment, spec = self._backends.environment, job.spec.require()
        return protocol.Launch(
            job_id=job.id,
            attempt=attempt.number,
            workers=attempt.workers,
            fence=attempt.fence,
            spec=spec,
            service_url=environment.service_url,
            token=attempt_token(attempt.fence),
            mlflow_uri=environment.mlflow_uri,
            mlflow_run_id=run_id,
            resume_from=attempt.resume_from,
            weights=weight_access(spec, self._backends.store, environment.weights),
            package=environment.package(job),
            startup_timeout_s=self._rules.startup_timeout_s,
        )


def in_turn(jobs: Iterable[Job], slow_at: Mapping[str, float]) -> list[Job]:
    """Those that were slow come last, the longest ago first; before them those of owners with slow jobs, for the next
    job of the same owner may well be slow, too.
    """
    jobs = list(jobs)
    owners: dict[str, float] = {}
    for job in jobs:
        owners[job.owner] = max(owners.get(job.owner, 0.0), slow_at.get(job.id, 0.0))
    return sorted(jobs, key=lambda job: (slow_at.get(job.id, 0.0), owners[job.owner], job.id))


def _event_data(job: Job, changes: dict[str, object]) -> dict[str, str | int]:
    data: dict[str, str | int] = {"attempt": job.attempt}
    if reason := changes.get("reason"):
        data["reason"] = str(reason)
    if isinstance(export := changes.get("export"), dict):
        data["export"] = str(export["state"])
    return data
