"""Later exports of finished jobs as values, and the decision about the next step of one. Pure.

An export sends no heartbeat, so once Ray has called it gone for a while, that has to be enough. If Ray is wrong, two
starts run for a moment. Each has a folder and a fence of its own, and only the result under the latest fence is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from syncnorm.service.jobs.attempt_ending import Observation, RayStatus
from syncnorm.service.jobs.export_summary import ExportSummary, stored_summary
from syncnorm.service.jobs.instants import after
from syncnorm.service.jobs.job import NewEvent
from syncnorm.service.jobs.lifecycle import StopOnRay, SubmitToRay
from syncnorm.trainer.contract.failure import FailureReason, may_be_retried
from syncnorm.trainer.contract.protocol import Result

MOST_STARTS = 4
"""Starts of one export: the first, and as many retries as a job has by default (limits.max_failures)."""
_GONE_S = 10.0
"""How long Ray must call it gone before it counts as lost: a result may take a moment to appear on a shared storage."""
_LONGEST_S = 3600.0
_PAUSE_S = 10.0
_LONGEST_PAUSE_S = _PAUSE_S * 2 ** (MOST_STARTS - 2)


class ExportState(StrEnum):
    """Where an export is in its life."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    SKIPPED = "skipped"
    """Only of a job's own: the network, as it is written, has nothing to export."""


OVER = frozenset({ExportState.SUCCEEDED, ExportState.FAILED, ExportState.SKIPPED})


@dataclass(frozen=True)
class Export:
    """A later export of a succeeded job. number: from 2 on; 1 is the job's own."""

    job_id: str
    number: int
    section: dict[str, Any]
    """The `export` section that was requested."""
    state: ExportState
    created_at: datetime
    starts: int = 0
    """How often it was submitted to Ray, each time under another submission id."""
    fence: str | None = None
    """Of the latest start."""
    session: str | None = None
    begun_at: datetime | None = None
    submitted_at: datetime | None = None
    stop_sent_at: datetime | None = None
    gone_at: datetime | None = None
    """Since when Ray calls the latest start gone, without a result."""
    not_before: datetime | None = None
    reason: FailureReason | None = None
    message: str = ""
    model: dict[str, Any] | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    released_at: datetime | None = None
    """When Ray confirmed that nothing of it runs any more."""
    version: int = 1

    @property
    def name(self) -> str:
        return str(self.number)

    @property
    def submission_id(self) -> str:
        """Of the latest start; known before Ray hears of it."""
        return submission_id(self.job_id, self.number, self.starts)


def submission_id(job_id: str, number: int, starts: int) -> str:
    """The submission id of one start of an export."""
    return f"{job_id}-export-{number}-{starts}"


@dataclass(frozen=True)
class Begin:
    """Record another start; there may be no capacity for it now."""


@dataclass(frozen=True)
class Update:
    """A change of the export's row, guarded by its version, with its event."""

    changes: Mapping[str, Any] = field(default_factory=dict)
    event: NewEvent | None = None


def decide_export(export: Export, observation: Observation) -> Begin | SubmitToRay | Update | StopOnRay | None:
    """The next step; None: nothing to do now."""
    if export.state is ExportState.QUEUED:
        may_start = observation.session is not None and _is_due(export, observation.now)
        return Begin() if may_start else None
    if export.state in OVER:
        return _leave(export, observation)
    if observation.result is not None:
        return _settle(export, observation.result, observation.now)
    return _watch(export, observation)


def _is_due(export: Export, now: datetime) -> bool:
    """Whether the pause before another start is over. One that is longer than any counts as over as well: the clock
    was set back, or the row is damaged, and nobody could delete the job meanwhile."""
    left_s = 0.0 if export.not_before is None else (export.not_before - now).total_seconds()
    return not 0 < left_s <= _LONGEST_PAUSE_S


def begin(export: Export, fence: str, session: str, now: datetime) -> Update:
    """The next start, recorded before anything is launched."""
    number = export.starts + 1
    changes = {
        "state": ExportState.RUNNING,
        "starts": number,
        "fence": fence,
        "session": session,
        "begun_at": now,
        "submitted_at": None,
        "stop_sent_at": None,
        "gone_at": None,
        "started_at": export.started_at or now,
    }
    return Update(changes, _event(export, "export_started", f"Export {export.name} started.", start=number))


def _watch(export: Export, observation: Observation) -> SubmitToRay | Update | StopOnRay | None:
    if observation.session is None or observation.storage_away:
        return None
    if observation.session != export.session:
        return _lost(export, "The Ray cluster restarted.", FailureReason.NODE_LOST, observation.now)
    if export.submitted_at is None:
        return SubmitToRay()
    if observation.ray in (RayStatus.ENDED, RayStatus.UNKNOWN):
        return _missing(export, observation.now)
    return _overdue(export, observation.now) if export.gone_at is None else Update({"gone_at": None})


def _missing(export: Export, now: datetime) -> Update | None:
    if export.gone_at is None:
        return Update({"gone_at": now})
    if (now - export.gone_at).total_seconds() < _GONE_S:
        return None
    return _lost(export, "It ended without a result.", FailureReason.WORKER_LOST, now)


def _overdue(export: Export, now: datetime) -> StopOnRay | None:
    assert export.begun_at is not None
    if export.stop_sent_at is None and (now - export.begun_at).total_seconds() > _LONGEST_S:
        return StopOnRay(FailureReason.WORKER_LOST, f"It did not finish within {_LONGEST_S:.0f} s.")
    return None


def _settle(export: Export, result: Result, now: datetime) -> Update:
    if result.outcome == "succeeded":
        model = result.model.model_dump(mode="json") if result.model else None
        changes = {"state": ExportState.SUCCEEDED, "model": model, "reason": None, "message": "", "finished_at": now}
        return Update(changes, _event(export, "export_succeeded", f"Export {export.name} succeeded."))
    return _lost(export, result.message, result.reason or FailureReason.INTERNAL, now, outage=result.outage)


def _lost(export: Export, message: str, reason: FailureReason, now: datetime, *, outage: bool = False) -> Update:
    """Another start, if it may help and is allowed."""
    changes: dict[str, Any] = {"reason": reason, "message": message}
    if may_be_retried(reason, outage=outage) and export.starts < MOST_STARTS:
        wait_s = _PAUSE_S * 2 ** (export.starts - 1)  # at most _LONGEST_PAUSE_S
        changes |= {"state": ExportState.QUEUED, "not_before": after(now, wait_s)}
        text = f"Export {export.name}: {message} It will be restarted in {wait_s:.0f} s."
        return Update(changes, _event(export, "export_lost", text, reason=reason.value))
    return _failed(export, changes, message, reason, now)


def refused_export(export: Export, why: str, now: datetime) -> Update:
    """Ray or the storage refused it, so a retry won't help."""
    reason = FailureReason.INTERNAL
    return _failed(export, {"reason": reason, "message": why}, why, reason, now)


def _failed(export: Export, changes: dict[str, Any], message: str, reason: FailureReason, now: datetime) -> Update:
    changes |= {"state": ExportState.FAILED, "finished_at": now}
    text = f"Export {export.name} failed: {message}"
    return Update(changes, _event(export, "export_failed", text, reason=reason.value))


def _leave(export: Export, observation: Observation) -> Update | StopOnRay | None:
    """Wait until none of its processes runs; a lingering process is stopped."""
    if observation.session is None:
        return None
    if observation.session != export.session or observation.ray in (RayStatus.ENDED, RayStatus.UNKNOWN):
        return Update({"released_at": observation.now})
    assert export.finished_at is not None
    if export.stop_sent_at is None and (observation.now - export.finished_at).total_seconds() > _GONE_S:
        return StopOnRay(None, "It wrote its result but did not exit.")
    return None


def _event(export: Export, kind: str, message: str, **data: str | int) -> NewEvent:
    return NewEvent(kind, message, {"export": export.name, **data})


def after_export(stored: dict[str, Any] | None, export: Export) -> dict[str, Any] | None:
    """What is stored of a job's export once a later one is in this state; None: nothing changes.

    A later export stands in for one that gave no certified model, until one does.
    """
    before = stored_summary(stored)
    if stored is None or before is None or (before.state == "certified" and before.name != export.name):
        return None
    own = stored.get("own", stored)
    return {**vars(_of_export(export)), "own": own}


def _of_export(export: Export) -> ExportSummary:
    if export.state is ExportState.SUCCEEDED:
        no_model = (export.model or {}).get("certificate", {}).get("no_model")
        return ExportSummary("certified", message=str(no_model or ""), name=export.name)
    if export.state is ExportState.FAILED:
        return ExportSummary("failed", export.reason, export.message, export.name)
    return ExportSummary("running", name=export.name)
