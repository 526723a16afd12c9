"""One tick's work on later exports: starts waiting ones, launches, settles and releases them."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace

from syncnorm.service.backend_errors import RefusedError, UnreachableError
from syncnorm.service.jobs.attempt_ending import Observation, RayStatus
from syncnorm.service.jobs.exports.export import (
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
from syncnorm.service.jobs.lifecycle import StopOnRay, SubmitToRay
from syncnorm.service.reconciler.backends import Backends, Tick, attempt_token
from syncnorm.service.reconciler.isolation import Isolation
from syncnorm.service.storage import attempt_files as files
from syncnorm.service.store.columns import UnreadableError
from syncnorm.service.store.rows import Faults
from syncnorm.trainer.contract import protocol
from syncnorm.trainer.errors import StorageError

logger = logging.getLogger(__name__)

MOST_AT_ONCE = 2
"""Exports are not scheduled and use the capacity of a driver only, so few run at a time, oldest first."""


class ExportStep:
    """Carries out what `decide_export` says."""

    def __init__(self, backends: Backends, items: Isolation) -> None:
        self._backends = backends
        self._items = items

    def advance_all(self, tick: Tick) -> set[str]:
        """Advance all exports; returns the submissions of exports that may still run."""
        known: set[str] = set()
        faults: Faults = {}
        exports = self._backends.store.exports.unreleased(faults)
        busy = sum(export.state is not ExportState.QUEUED for export in exports)
        jobs = {job.id: job for job in self._backends.store.workload.jobs({export.job_id for export in exports})}
        for export in _oldest_first(exports):
            tick.check()
            job, has_capacity = jobs.get(export.job_id), busy < MOST_AT_ONCE
            known |= {export.submission_id, submission_id(export.job_id, export.number, export.starts + 1)}
            if job is not None:
                busy += self._advance_isolated(
                    export, job, tick, faults.get(export.submission_id), has_capacity=has_capacity
                )
        return known

    def _advance_isolated(self, export: Export, job: Job, tick: Tick, fault: str | None, *, has_capacity: bool) -> bool:
        """Whether it was started. An export that raises repeatedly is given up."""

        def act() -> Export:
            if fault is not None:
                raise UnreadableError(f"the stored export can't be read: {fault}")
            return self._advance(export, job, tick, has_capacity=has_capacity)

        after = self._items.attempt(
            "export",
            export.submission_id,
            act,
            lambda why, _: self._backends.store.set_aside.export(export.job_id, export.number, why, tick.token),
        )
        waited = export.state is ExportState.QUEUED
        return waited and after is not None and after.state is not ExportState.QUEUED

    def _advance(self, export: Export, job: Job, tick: Tick, *, has_capacity: bool) -> Export:
        """The export after the change."""
        for _ in range(4):  # begun, launched, succeeded, released: none has more to do at once
            decision = decide_export(export, self._observe(export, tick))
            if isinstance(decision, Begin):
                if not has_capacity:
                    break
                assert tick.view is not None
                decision = begin(export, new_fence(), tick.view.session, self._backends.store.now())
            after = None if decision is None else self._apply(export, job, decision, tick)
            if after is None:
                break
            export = after
        return export

    def _observe(self, export: Export, tick: Tick) -> Observation:
        now, view = self._backends.store.now(), tick.view
        observation, fence = Observation(now), export.fence
        if view is not None:
            submission = view.submissions.get(export.submission_id)
            status = submission.status if submission else RayStatus.UNKNOWN
            observation = Observation(now, ray=status, session=view.session)
        if fence is None or export.state is not ExportState.RUNNING:
            return observation
        try:
            result = self._backends.storage.ask(lambda: files.read_result(self._folder(export), fence))
        except StorageError:
            return replace(observation, storage_away=True)
        return replace(observation, result=result)

    def _apply(self, export: Export, job: Job, decision: SubmitToRay | Update | StopOnRay, tick: Tick) -> Export | None:
        """Carry out a decision; None: not possible now, the next tick tries again."""
        try:
            if isinstance(decision, SubmitToRay):
                decision = self._launch(export, job)
            elif isinstance(decision, StopOnRay):
                self._backends.circuit.ask("ray", lambda: self._backends.dispatcher.end(export.submission_id))
                decision = Update({"stop_sent_at": self._backends.store.now()})
        except RefusedError as error:
            decision = self._refused(export, str(error), launching=isinstance(decision, SubmitToRay))
        except (UnreachableError, StorageError) as error:
            what = f"export {export.submission_id}"
            self._backends.outage_log.failed(
                what,
                "export postponed: Ray, MLflow or the storage is unavailable; retrying on the next tick",
                what=what,
                error=str(error),
            )
            return None
        self._backends.outage_log.recovered(f"export {export.submission_id}")
        after = self._backends.store.exports.change(export, decision.changes, event=decision.event, lease=tick.token)
        if after is not None and decision.event is not None:
            logger.info("export state changed", extra={"export": after.submission_id, "to": after.state.value})
            self._backends.on_change(job.id)
        launched = after is not None and export.submitted_at != after.submitted_at is not None
        return None if launched else after  # the observed state of Ray is from before the launch

    def _refused(self, export: Export, why: str, *, launching: bool) -> Update:
        now = self._backends.store.now()
        return refused_export(export, why, now) if launching else Update({"stop_sent_at": now})

    def _launch(self, export: Export, job: Job) -> Update:
        folder, request = self._folder(export), self._request(export, job)
        self._backends.storage.ask(lambda: files.write_export(folder, request))
        self._backends.circuit.ask(
            "ray", lambda: self._backends.dispatcher.start(export.submission_id, folder, "export")
        )
        return Update({"submitted_at": self._backends.store.now()})

    def _request(self, export: Export, job: Job) -> protocol.ExportRequest:
        assert export.fence is not None and job.run_id is not None
        environment = self._backends.environment
        trained = protocol.attempt_folder(environment.storage, job.id, job.attempt)
        return protocol.ExportRequest(
            name=export.name,
            job_id=job.id,
            fence=export.fence,
            spec=job.spec.with_section("export", export.section).require(),
            source=f"{trained}/export",
            mlflow_uri=environment.mlflow_uri,
            mlflow_run_id=job.run_id,
            package=environment.package(job),
            service_url=environment.service_url,
            token=attempt_token(export.fence),
        )

    def _folder(self, export: Export) -> str:
        return protocol.export_folder(self._backends.environment.storage, export.job_id, export.name, export.starts)


def _oldest_first(exports: Iterable[Export]) -> list[Export]:
    """Finished ones first, since they free capacity."""
    return sorted(exports, key=lambda one: (one.state not in OVER, one.created_at, one.job_id, one.number))
