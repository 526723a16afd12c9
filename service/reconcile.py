"""The loop that makes what is asked for come true: load, observe, decide, apply.

Every effect carries an id chosen beforehand, so that a crash between any two lines is mended by the next tick.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Protocol

from service import files
from service.decide import EndOnRay, Launch, Move, RayStatus, Rules, Seen, decide
from service.dispatch import ClusterUnreachableError, Dispatcher, View
from service.jobs import RUN_STATUS, TERMINAL, Attempt, Job, JobState, NewEvent, new_fence
from service.packages import Packages
from service.scheduler import Held, Policy, Schedule, schedule
from service.store import Store
from service.tracking import Tracker, TrackingUnreachableError
from service.waiting import Waiting
from trainer import attempt as protocol
from trainer.plan import NodeCapacity
from trainer.spec import JobSpec

logger = logging.getLogger(__name__)

_LEASE_S = 15.0
_REST_S = 0.1
"""Between two ticks at least, so that a stream of requests does not make one tick each."""
_LAUNCH_LEASE_S = 60.0
"""The first message may take as long as Ray needs for a driver process on a busy host."""
_EXIT_GRACE_S = 15.0
"""A driver that has sent its result gets this long to leave by itself."""


@dataclass(frozen=True)
class Places:
    """What a launch file tells an attempt about its surroundings."""

    storage: str
    service_url: str
    mlflow_uri: str

    def package(self, job: Job) -> str | None:
        code = job.spec.get("code")
        return Packages(self.storage).path(code["package"]) if code else None

    def folder(self, attempt: Attempt) -> str:
        return protocol.attempt_folder(self.storage, attempt.job_id, attempt.number)


class Observer(Protocol):
    """Hears of what happened, for metrics."""

    def moved(self, before: Job, after: Job) -> None: ...

    def attempt_ended(self, outcome: str, reason: str) -> None: ...


class Reconciler:
    """One acts at a time, under a lease in the database; any number may stand by."""

    def __init__(
        self,
        store: Store,
        dispatcher: Dispatcher,
        tracker: Tracker,
        places: Places,
        *,
        rules: Rules = Rules(),  # noqa: B008
        policy: Policy = Policy(),  # noqa: B008
        lease_s: float = 30.0,
        on_change: Callable[[str], None] = lambda _job_id: None,
        metrics: Observer | None = None,
        holder: str | None = None,
    ) -> None:
        """holder: of the lease, where one process at most is alive, so that its successor need not wait for it."""
        self._store = store
        self._dispatcher = dispatcher
        self._tracker = tracker
        self._places = places
        self._rules = rules
        self.policy = policy
        self._metrics = metrics
        self._looked_at = time.monotonic()
        self._waiting = Waiting(policy)
        self._lease_s = lease_s
        self._on_change = on_change
        self._holder = holder or f"{socket.gethostname()}-{os.getpid()}-{new_fence()[:8]}"
        self._token: int | None = None
        self.view: View | None = None
        """The last look at the cluster; None while it can't be reached."""
        self.plan: Schedule | None = None
        """The last plan of what starts and why the others wait."""

    @property
    def capacity(self) -> Sequence[NodeCapacity] | None:
        """The hosts of the cluster; None while it can't be asked."""
        return self.view.capacity if self.view else None

    def lag_s(self) -> float:
        """Since the last look at the jobs and the cluster that succeeded."""
        return time.monotonic() - self._looked_at

    def run(self, stop: threading.Event, wake: threading.Event, tick_s: float) -> None:
        """Tick until told to stop; an error in one tick does not end the loop."""
        while not stop.is_set():
            try:
                self.tick()
            except Exception:
                logger.exception("tick failed; trying again")
            stop.wait(_REST_S)
            wake.wait(tick_s)
            wake.clear()
        self._store.give_lease_back(self._holder)

    def tick(self) -> None:
        self._token = self._store.take_lease(self._holder, _LEASE_S)
        if self._token is None:
            return
        self.view = self._look()
        self._waiting.refresh(self._store)
        attempts = {
            attempt.job_id: self._redated(attempt)
            for attempt in self._store.unreleased_attempts()
            if not attempt.ended_at
        }
        for job in self._store.jobs_by_id(attempts.keys() | self._store.unsettled()):
            self._advance(job, attempts.get(job.id))
        if self.view is None:
            self.plan = None
            return
        self._looked_at = time.monotonic()
        left = self._release(self.view, self._store.unreleased_attempts())
        self._stop_orphans(self.view, left)
        self._start_what_fits(self.view, left)

    def _redated(self, attempt: Attempt) -> Attempt:
        """With a lease that begins now, if it has more left than any lease lasts: the clock was set back since.

        A living attempt renews it within seconds; a dead one must not count as alive for all the time gone back.
        """
        now, longest_s = self._store.now(), max(self._lease_s, _LAUNCH_LEASE_S)
        if (attempt.lease_expires_at - now).total_seconds() <= 2 * longest_s:
            return attempt
        expires_at = now + timedelta(seconds=longest_s)
        self._store.note_attempt(attempt.id, {"lease_expires_at": expires_at}, self._token)
        return replace(attempt, lease_expires_at=expires_at)

    def _look(self) -> View | None:
        try:
            return self._dispatcher.look()
        except ClusterUnreachableError as error:
            logger.warning("the cluster can't be asked", extra={"error": str(error)})
            return None

    # One job

    def _advance(self, job: Job, attempt: Attempt | None) -> None:
        """Decide and apply until there is nothing to do now."""
        for _ in range(4):  # starting, running, finalizing, succeeded: no job has more to do at once
            seen = self._see(attempt)
            decision = decide(job, attempt, seen, self._rules)
            if decision is None:
                break
            moved = self._apply(job, attempt, decision)
            if moved is None:
                return
            job, attempt = moved
        self._settle_run(job)

    def _see(self, attempt: Attempt | None) -> Seen:
        now = self._store.now()
        if attempt is None:
            return Seen(now, session=self.view.session if self.view else None)
        result = files.read_result(self._places.folder(attempt), attempt.fence)
        if self.view is None:
            return Seen(now, result=result)
        submission = self.view.submissions.get(attempt.id)
        node_id = (submission.node_id if submission else None) or attempt.node_id
        return Seen(
            now,
            ray=submission.status if submission else RayStatus.UNKNOWN,
            session=self.view.session,
            node_gone=node_id is not None and node_id not in {node.node_id for node in self.view.nodes},
            result=result,
        )

    def _apply(
        self, job: Job, attempt: Attempt | None, decision: Move | Launch | EndOnRay
    ) -> tuple[Job, Attempt | None] | None:
        """Carry a decision out; None: not now, the next tick looks again."""
        if isinstance(decision, Move):
            return self._move(job, attempt, decision)
        assert attempt is not None
        try:
            if isinstance(decision, Launch):
                return self._launch(job, attempt)
            self._dispatcher.end(attempt.id)
        except (ClusterUnreachableError, TrackingUnreachableError) as error:
            logger.warning("an effect has to wait", extra={"job": job.id, "error": str(error)})
            return None
        noted = {"stop_sent_at": self._store.now(), "reason": decision.reason, "message": decision.message}
        self._store.note_attempt(attempt.id, noted, self._token)
        return None

    def _move(self, job: Job, attempt: Attempt | None, move: Move) -> tuple[Job, Attempt | None] | None:
        changes = dict(move.changes)
        if move.to in TERMINAL and job.run_id is not None and self._tell_run(job.run_id, RUN_STATUS[move.to]):
            changes["run_status"] = RUN_STATUS[move.to]
        event = NewEvent(move.to.value, move.message, _event_data(job, changes))
        moved = self._store.move(
            job, move.to, changes, event=event, attempt_changes=move.attempt_changes, lease=self._token
        )
        if moved is None:
            return None
        self._waiting.note(moved)
        if self._metrics is not None:
            self._metrics.moved(job, moved)
        logger.info("job moved", extra={"job": job.id, "from": job.state.value, "to": move.to.value})
        self._on_change(job.id)
        ended = attempt is None or move.attempt_changes.get("ended_at") is not None
        return moved, None if ended else attempt

    def _launch(self, job: Job, attempt: Attempt) -> tuple[Job, Attempt] | None:
        assert self.view is not None
        run = self._tracker.run_for(job)
        self._store.note_job(job, {"experiment_id": run.experiment_id, "run_id": run.run_id})
        if attempt.session is None:
            attempt = replace(attempt, session=self.view.session)
            if not self._store.note_attempt(attempt.id, {"session": attempt.session}, self._token):
                return None
        files.write_launch(self._places.folder(attempt), self._launch_file(job, attempt, run.run_id))
        self._dispatcher.start(attempt.id, self._places.folder(attempt))
        now = self._store.now()
        noted = {
            "submitted_at": now,
            "lease_expires_at": max(attempt.lease_expires_at, now + timedelta(seconds=_LAUNCH_LEASE_S)),
        }
        if not self._store.note_attempt(attempt.id, noted, self._token):
            return None
        self._on_change(job.id)
        job = replace(job, experiment_id=run.experiment_id, run_id=run.run_id)
        return job, replace(attempt, submitted_at=now)

    def _launch_file(self, job: Job, attempt: Attempt, run_id: str) -> protocol.Launch:
        return protocol.Launch(
            job_id=job.id,
            attempt=attempt.number,
            fence=attempt.fence,
            spec=JobSpec.model_validate_json(json.dumps(job.spec)),
            service_url=self._places.service_url,
            token=attempt_token(attempt.fence),
            mlflow_uri=self._places.mlflow_uri,
            mlflow_run_id=run_id,
            resume_from=attempt.resume_from,
            package=self._places.package(job),
        )

    # The MLflow run follows the state

    def _settle_run(self, job: Job) -> None:
        wanted = RUN_STATUS[job.state]
        if job.run_id is None or job.run_status == wanted:
            return
        if self._tell_run(job.run_id, wanted):
            self._store.note_job(job, {"run_status": wanted})

    def _tell_run(self, run_id: str, status: str) -> bool:
        try:
            self._tracker.set_status(run_id, status)
        except TrackingUnreachableError as error:
            logger.warning("the run's status has to wait", extra={"run": run_id, "error": str(error)})
            return False
        return True

    # The cluster

    def _release(self, view: View, attempts: Sequence[Attempt]) -> list[Attempt]:
        """Find out which ended attempts have left the cluster, and end those that linger; the ones still there."""
        now = self._store.now()
        left = []
        for attempt in attempts:
            submission = view.submissions.get(attempt.id)
            elsewhere = attempt.session not in (None, view.session)
            gone = elsewhere or submission is None or submission.status is RayStatus.ENDED
            if attempt.ended_at is not None and gone:
                if self._store.release(attempt.id, self._token) is not None and self._metrics is not None:
                    self._metrics.attempt_ended(attempt.outcome or "", attempt.reason or "")
                continue
            left.append(attempt)
            if attempt.ended_at is not None and (now - attempt.ended_at).total_seconds() > _EXIT_GRACE_S:
                self._end_quietly(attempt.id)
        return left

    def _stop_orphans(self, view: View, attempts: Sequence[Attempt]) -> None:
        """End submissions of ours that no attempt stands behind."""
        known = {attempt.id for attempt in attempts}
        for submission_id, submission in view.submissions.items():
            if submission.status in (RayStatus.WAITING, RayStatus.RUNNING) and submission_id not in known:
                logger.warning("ending an orphan", extra={"submission": submission_id})
                self._end_quietly(submission_id)

    def _start_what_fits(self, view: View, attempts: Sequence[Attempt]) -> None:
        now = self._store.now()
        held = self._held(attempts, now)
        self.plan = schedule(self._waiting.lines(), held, view.nodes, now, self.policy)
        for job in self.plan.preempts:
            event = NewEvent("preempt_requested", "A job of higher priority needs the room.")
            if self._store.move(job, job.state, {"stop": "preempt", "stop_at": now}, event=event, lease=self._token):
                self._on_change(job.id)
        for job in self.plan.starts:
            self._begin(job, now)

    def _held(self, attempts: Sequence[Attempt], now: datetime) -> list[Held]:
        jobs = {job.id: job for job in self._store.jobs_by_id([attempt.job_id for attempt in attempts])}
        held = []
        for attempt in attempts:
            if job := jobs.get(attempt.job_id):
                # Once its workers train, what they use is part of what the cluster reports.
                placed = attempt.phase is not None and attempt.phase not in ("preparing", "starting_workers")
                held.append(Held(job, attempt.created_at, placed, _ends_at(job, now)))
        return held

    def _begin(self, job: Job, now: datetime) -> None:
        """Write the next attempt down, then launch it."""
        checkpoint = next(iter(self._store.checkpoints(job.id)), None)
        number = job.attempt + 1
        attempt = Attempt(
            id=protocol.attempt_id(job.id, number),
            job_id=job.id,
            number=number,
            fence=new_fence(),
            created_at=now,
            lease_expires_at=now + timedelta(seconds=max(self._lease_s, _LAUNCH_LEASE_S)),
            resume_from=checkpoint.path if checkpoint else None,
            resume_step=checkpoint.step if checkpoint else 0,
            step=checkpoint.step if checkpoint else 0,
        )
        event = NewEvent(JobState.STARTING, f"Attempt {number} starts.", {"attempt": number})
        changes = {"attempt": number, "not_before": None}
        moved = self._store.move(job, JobState.STARTING, changes, event=event, new_attempt=attempt, lease=self._token)
        if moved is not None:
            self._waiting.note(moved)
            self._on_change(job.id)
            self._advance(moved, attempt)

    def _end_quietly(self, submission_id: str) -> None:
        try:
            self._dispatcher.end(submission_id)
        except ClusterUnreachableError as error:
            logger.warning("an orphan has to wait", extra={"submission": submission_id, "error": str(error)})


def _ends_at(job: Job, now: datetime) -> datetime | None:
    """By the pace of its steps, or by its deadline."""
    if job.deadline_s is not None and job.started_at is not None:
        return max(now, job.started_at + timedelta(seconds=job.deadline_s))
    eta_s = (job.progress or {}).get("eta_s")
    return None if eta_s is None else now + timedelta(seconds=eta_s)


def attempt_token(fence: str) -> str:
    """The bearer token of an attempt. Made from its fence, so that a launch file can be written again after a crash."""
    return hashlib.sha256(f"syncnorm attempt {fence}".encode()).hexdigest()


def _event_data(job: Job, changes: dict[str, object]) -> dict[str, str | int]:
    data: dict[str, str | int] = {"attempt": job.attempt}
    if reason := changes.get("reason"):
        data["reason"] = str(reason)
    return data
