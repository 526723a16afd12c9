"""What one tick does with one job: see, decide, apply, until there is nothing to do now."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import timedelta

from service import files
from service.decide import EndOnRay, Launch, Move, RayStatus, Rules, Seen, decide, may_be_over
from service.dispatch import ClusterUnreachableError
from service.jobs import RUN_STATUS, TERMINAL, Attempt, Job, NewEvent
from service.outages import Outages
from service.run_note import run_note
from service.steps.ports import Look, Ports, attempt_token
from service.tracking import TrackingUnreachableError
from service.waiting import Waiting
from trainer import attempt as protocol
from trainer.files import StorageError
from trainer.spec_reader import read_stored

logger = logging.getLogger(__name__)

LAUNCH_LEASE_S = 60.0
"""The first message may take as long as Ray needs for a driver process on a busy host."""


class JobStep:
    """Carries out what `decide` says, and tells the MLflow run."""

    def __init__(self, ports: Ports, rules: Rules, waiting: Waiting) -> None:
        self._ports = ports
        self._rules = rules
        self._waiting = waiting
        self._outages = Outages(logger)

    def advance(self, job: Job, attempt: Attempt | None, look: Look) -> None:
        """Decide and apply until there is nothing to do now."""
        for _ in range(4):  # starting, running, finalizing, succeeded: no job has more to do at once
            decision = decide(job, attempt, self._see(attempt, look), self._rules)
            if decision is None:
                break
            moved = self._apply(job, attempt, decision, look)
            if moved is None:
                return
            job, attempt = moved
        self._settle_run(job)

    def _see(self, attempt: Attempt | None, look: Look) -> Seen:
        now, view = self._ports.store.now(), look.view
        if attempt is None:
            return Seen(now, session=view.session if view else None)
        if view is None:
            return self._with_result(attempt, Seen(now))
        submission = view.submissions.get(attempt.id)
        node_id = submission.node_id if submission else None
        seen = Seen(
            now,
            ray=submission.status if submission else RayStatus.UNKNOWN,
            ray_message=submission.message if submission else "",
            session=view.session,
            node_gone=node_id is not None and node_id not in {node.node_id for node in view.nodes},
        )
        return self._with_result(attempt, seen)

    def _with_result(self, attempt: Attempt, seen: Seen) -> Seen:
        if not may_be_over(attempt, seen):
            return seen  # its exit message is on the way anyway, and each look at a bucket is paid for
        folder = self._ports.places.folder(attempt)
        try:
            return replace(seen, result=self._ports.storage.ask(lambda: files.read_result(folder, attempt.fence)))
        except StorageError:
            return replace(seen, storage_away=True)

    def _apply(
        self, job: Job, attempt: Attempt | None, decision: Move | Launch | EndOnRay, look: Look
    ) -> tuple[Job, Attempt | None] | None:
        """Carry a decision out; None: not now, the next tick looks again."""
        if isinstance(decision, Move):
            return self._move(job, attempt, decision, look)
        assert attempt is not None
        what = f"{'launch' if isinstance(decision, Launch) else 'end'} of {attempt.id}"
        try:
            if isinstance(decision, Launch):
                launched = self._launch(job, attempt, look)
                self._outages.over(what)
                return launched
            self._ports.dispatcher.end(attempt.id)
        except (ClusterUnreachableError, TrackingUnreachableError, StorageError) as error:
            self._outages.goes_on(what, "an effect has to wait", what=what, error=str(error))
            return None
        self._outages.over(what)
        store = self._ports.store
        noted = {"stop_sent_at": store.now(), "reason": decision.reason, "message": decision.message}
        store.note_attempt(attempt.id, noted, look.token)
        return None

    def _move(self, job: Job, attempt: Attempt | None, move: Move, look: Look) -> tuple[Job, Attempt | None] | None:
        changes = dict(move.changes)
        if move.to in TERMINAL and self._tell_run(replace(job, state=move.to, **changes)):
            changes["run_status"] = RUN_STATUS[move.to]
        event = NewEvent(move.to.value, move.message, _event_data(job, changes))
        moved = self._ports.store.move(
            job, move.to, changes, event=event, attempt_changes=move.attempt_changes, lease=look.token
        )
        if moved is None:
            return None
        self._waiting.note(moved)
        self._ports.tell(job, moved)
        ended = attempt is None or move.attempt_changes.get("ended_at") is not None
        return moved, None if ended else attempt

    def _launch(self, job: Job, attempt: Attempt, look: Look) -> tuple[Job, Attempt] | None:
        assert look.view is not None
        store, places = self._ports.store, self._ports.places
        run = self._ports.tracker.run_for(job, store.attempts(job.id), run_note(job, places.page(job)))
        store.note_job(job, {"experiment_id": run.experiment_id, "run_id": run.run_id})
        if attempt.session is None:
            attempt = replace(attempt, session=look.view.session)
            if not store.note_attempt(attempt.id, {"session": attempt.session}, look.token):
                return None
        folder, launch = places.folder(attempt), self._launch_file(job, attempt, run.run_id)
        self._ports.storage.ask(lambda: files.write_launch(folder, launch))
        self._ports.dispatcher.start(attempt.id, folder)
        now = store.now()
        noted = {
            "submitted_at": now,
            "lease_expires_at": max(attempt.lease_expires_at, now + timedelta(seconds=LAUNCH_LEASE_S)),
        }
        if not store.note_attempt(attempt.id, noted, look.token):
            return None
        self._ports.on_change(job.id)
        job = replace(job, experiment_id=run.experiment_id, run_id=run.run_id)
        return job, replace(attempt, submitted_at=now)

    def _launch_file(self, job: Job, attempt: Attempt, run_id: str) -> protocol.Launch:
        places = self._ports.places
        return protocol.Launch(
            job_id=job.id,
            attempt=attempt.number,
            workers=attempt.workers,
            fence=attempt.fence,
            spec=read_stored(job.spec),
            service_url=places.service_url,
            token=attempt_token(attempt.fence),
            mlflow_uri=places.mlflow_uri,
            mlflow_run_id=run_id,
            resume_from=attempt.resume_from,
            package=places.package(job),
            startup_timeout_s=self._rules.startup_timeout_s,
        )

    # The MLflow run follows the state

    def _settle_run(self, job: Job) -> None:
        wanted = RUN_STATUS[job.state]
        if job.run_status != wanted and self._tell_run(job):
            self._ports.store.note_job(job, {"run_status": wanted})

    def _tell_run(self, job: Job) -> bool:
        """The state of the job, and its page; whether MLflow heard."""
        if job.run_id is None:
            return False
        what = f"status of run {job.run_id}"
        try:
            note = run_note(job, self._ports.places.page(job))
            self._ports.tracker.set_status(job.run_id, RUN_STATUS[job.state], note)
        except TrackingUnreachableError as error:
            self._outages.goes_on(what, "the run's status has to wait", run=job.run_id, error=str(error))
            return False
        self._outages.over(what)
        return True


def _event_data(job: Job, changes: dict[str, object]) -> dict[str, str | int]:
    data: dict[str, str | int] = {"attempt": job.attempt}
    if reason := changes.get("reason"):
        data["reason"] = str(reason)
    return data
