"""What one tick does with later exports: begins those that wait, launches, settles and releases them."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace

from syncnorm.service.jobs.export import (
    OVER,
    Begin,
    Export,
    ExportState,
    Update,
    begin,
    decide_export,
    refused_export,
    submission_id,
)
from syncnorm.service.jobs.job import Job, new_fence
from syncnorm.service.jobs.lifecycle import EndOnRay, Launch, RayStatus, Seen
from syncnorm.service.port_errors import RefusedError, UnreachableError
from syncnorm.service.reconciler.environment import Look, Ports, attempt_token
from syncnorm.service.reconciler.isolation import Isolation
from syncnorm.service.storage import attempt_files as files
from syncnorm.service.store.rows import Faults, UnreadableError
from syncnorm.trainer.contract import protocol
from syncnorm.trainer.contract.spec_reader import read_stored
from syncnorm.trainer.storage.atomic_files import StorageError

logger = logging.getLogger(__name__)

MOST_AT_ONCE = 2
"""Exports take no room of the scheduler's, only that of a driver; so there are few at a time, oldest first."""


class ExportStep:
    """Carries out what `decide_export` says."""

    def __init__(self, ports: Ports, items: Isolation) -> None:
        self._ports = ports
        self._items = items

    def advance_all(self, look: Look) -> set[str]:
        """Do what can be done now; the submissions that belong to exports which may still run."""
        known: set[str] = set()
        faults: Faults = {}
        exports = self._ports.store.exports.unreleased(faults)
        busy = sum(export.state is not ExportState.QUEUED for export in exports)
        jobs = {job.id: job for job in self._ports.store.workload.jobs({export.job_id for export in exports})}
        for export in _oldest_first(exports):
            look.check()
            job, room = jobs.get(export.job_id), busy < MOST_AT_ONCE
            known |= {export.submission_id, submission_id(export.job_id, export.number, export.starts + 1)}
            if job is not None:
                busy += self._advance_alone(export, job, look, faults.get(export.submission_id), room=room)
        return known

    def _advance_alone(self, export: Export, job: Job, look: Look, fault: str | None, *, room: bool) -> bool:
        """Whether it was begun. One that raises again and again is given up."""

        def act() -> Export:
            if fault is not None:
                raise UnreadableError(f"the stored export can't be read: {fault}")
            return self._advance(export, job, look, room=room)

        after = self._items.attempt(
            "export",
            export.submission_id,
            act,
            lambda why, _: self._ports.store.set_aside.export(export.job_id, export.number, why, look.token),
        )
        waited = export.state is ExportState.QUEUED
        return waited and after is not None and after.state is not ExportState.QUEUED

    def _advance(self, export: Export, job: Job, look: Look, *, room: bool) -> Export:
        """What became of it."""
        for _ in range(4):  # begun, launched, succeeded, released: none has more to do at once
            decision = decide_export(export, self._see(export, look))
            if isinstance(decision, Begin):
                if not room:
                    break
                assert look.view is not None
                decision = begin(export, new_fence(), look.view.session, self._ports.store.now())
            after = None if decision is None else self._apply(export, job, decision, look)
            if after is None:
                break
            export = after
        return export

    def _see(self, export: Export, look: Look) -> Seen:
        now, view = self._ports.store.now(), look.view
        seen, fence = Seen(now), export.fence
        if view is not None:
            submission = view.submissions.get(export.submission_id)
            status = submission.status if submission else RayStatus.UNKNOWN
            seen = Seen(now, ray=status, session=view.session)
        if fence is None or export.state is not ExportState.RUNNING:
            return seen
        try:
            result = self._ports.storage.ask(lambda: files.read_result(self._folder(export), fence))
        except StorageError:
            return replace(seen, storage_away=True)
        return replace(seen, result=result)

    def _apply(self, export: Export, job: Job, decision: Launch | Update | EndOnRay, look: Look) -> Export | None:
        """Carry a decision out; None: not now, the next tick looks again."""
        try:
            if isinstance(decision, Launch):
                decision = self._launch(export, job)
            elif isinstance(decision, EndOnRay):
                self._ports.circuit.ask("ray", lambda: self._ports.dispatcher.end(export.submission_id))
                decision = Update({"stop_sent_at": self._ports.store.now()})
        except RefusedError as error:
            decision = self._refused(export, str(error), launching=isinstance(decision, Launch))
        except (UnreachableError, StorageError) as error:
            what = f"export {export.submission_id}"
            self._ports.outages.goes_on(what, "export postponed; retrying", what=what, error=str(error))
            return None
        self._ports.outages.over(f"export {export.submission_id}")
        after = self._ports.store.exports.change(export, decision.changes, event=decision.event, lease=look.token)
        if after is not None and decision.event is not None:
            logger.info("export moved", extra={"export": after.submission_id, "to": after.state.value})
            self._ports.on_change(job.id)
        launched = after is not None and export.submitted_at != after.submitted_at is not None
        return None if launched else after  # what Ray said of it is from before the launch

    def _refused(self, export: Export, why: str, *, launching: bool) -> Update:
        now = self._ports.store.now()
        return refused_export(export, why, now) if launching else Update({"stop_sent_at": now})

    def _launch(self, export: Export, job: Job) -> Update:
        folder, request = self._folder(export), self._request(export, job)
        self._ports.storage.ask(lambda: files.write_export(folder, request))
        self._ports.circuit.ask("ray", lambda: self._ports.dispatcher.start(export.submission_id, folder, "export"))
        return Update({"submitted_at": self._ports.store.now()})

    def _request(self, export: Export, job: Job) -> protocol.ExportRequest:
        assert export.fence is not None and job.run_id is not None
        places = self._ports.places
        trained = protocol.attempt_folder(places.storage, job.id, job.attempt)
        return protocol.ExportRequest(
            name=export.name,
            job_id=job.id,
            fence=export.fence,
            spec=read_stored(job.spec | {"export": export.section}),
            source=f"{trained}/export",
            mlflow_uri=places.mlflow_uri,
            mlflow_run_id=job.run_id,
            package=places.package(job),
            service_url=places.service_url,
            token=attempt_token(export.fence),
        )

    def _folder(self, export: Export) -> str:
        return protocol.export_folder(self._ports.places.storage, export.job_id, export.name, export.starts)


def _oldest_first(exports: Iterable[Export]) -> list[Export]:
    """Those that are over first: they make room."""
    return sorted(exports, key=lambda one: (one.state not in OVER, one.created_at, one.job_id, one.number))
