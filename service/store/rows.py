"""Jobs, attempts and exports as values: a row that can't be read as a whole is read as far as it can be.

What can't be read is named, and the reconciler ends a job on which it can't act.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from types import NoneType
from typing import Any, get_args

from pydantic_core import to_json

from syncnorm.service.jobs.exports.export import Export, ExportState
from syncnorm.service.jobs.job import Attempt, Job, JobState
from syncnorm.service.jobs.stored_spec import StoredSpec
from syncnorm.service.store import schema as t
from syncnorm.service.store.columns import (
    Column,
    RowReader,
    Special,
    UnreadableError,
    column_of,
    count,
    finite,
    json_text,
    one_of,
    read_or_salvage,
    row_reader,
    workers,
)
from syncnorm.service.store.values import ListedJob
from syncnorm.trainer.contract.failure import FailureReason
from syncnorm.trainer.contract.protocol import Phase, StopRequest
from syncnorm.trainer.contract.text import storable_json

PHASES: tuple[Phase, ...] = get_args(Phase)
"""Phases in the order in which an attempt passes through them."""
Faults = dict[str, str]
"""Problems of rows that can't be read, by their id."""


def _reason(value: str) -> FailureReason:
    """An unknown reason, of a newer version, reads as `internal` here."""
    return FailureReason(value) if value in _REASONS else FailureReason.INTERNAL


_REASONS = frozenset(reason.value for reason in FailureReason)


def _phases(value: Any) -> Any:
    for name, at in value.items():
        if name not in PHASES or datetime.fromisoformat(at).tzinfo is None:
            raise UnreadableError("must be times by phase")
    return value


def _listed_reader() -> RowReader[ListedJob]:
    """labels, spec: read as text, see Listed."""
    columns = {name: column_of(t.jobs.c[name], _JOB_SPECIAL) for name in ListedJob._fields}
    labels = Column("labels", frozenset({str}), json_text, "{}")
    spec = Column("spec", frozenset({str, NoneType}), json_text, None)
    return RowReader(t.jobs, ListedJob, tuple((columns | {"labels": labels, "spec": spec}).values()))


_REASON: tuple[Callable[[Any], Any], Any] = (_reason, None)
_COUNT: tuple[Callable[[Any], Any], Any] = (count, 0)
_JOB_SPECIAL: Special = {
    **dict.fromkeys(("attempt", "failures", "stalled", "version"), _COUNT),
    "state": (JobState, JobState.FAILED),
    "reason": _REASON,
    "spec": (StoredSpec, {}),
    "stop": (one_of(get_args(StopRequest)), None),
    "workers": (None, 1),
    "grace_s": (finite, 60.0),
}
_ATTEMPT_SPECIAL: Special = {
    "reason": _REASON,
    "phase": (one_of(PHASES), None),
    "phases": (_phases, None),
    "workers": (workers, 1),
}
JOB = row_reader(t.jobs, Job, _JOB_SPECIAL)
ATTEMPT = row_reader(t.attempts, Attempt, _ATTEMPT_SPECIAL)
LISTED = _listed_reader()
_EXPORT_SPECIAL: Special = {
    **dict.fromkeys(("starts", "version"), _COUNT),
    "state": (ExportState, ExportState.FAILED),
    "reason": _REASON,
}
EXPORT = row_reader(t.exports, Export, _EXPORT_SPECIAL)


def job_of(row: Sequence[Any], faults: Faults | None = None) -> Job:
    """A job. If parts can't be read, they are replaced, and the job counts as failed unless it is over. faults: gets
    the problems."""
    job, wrong = read_or_salvage(JOB, row)
    if wrong is None:
        return job
    if faults is not None:
        faults[job.id] = wrong
    return unreadable_job(job, wrong)


def unreadable_job(job: Job, wrong: str) -> Job:
    if (job.is_terminal and job.reason is not None) or job.state in (JobState.SUCCEEDED, JobState.CANCELLED):
        return job
    said = f"The stored job can't be read, so the job can't continue: {wrong}."
    return replace(job, state=JobState.FAILED, reason=FailureReason.INTERNAL, message=said, stop=None)


def listed_of(job: Job, *, full: bool) -> ListedJob:
    """A job as a list shows it, from what could be read of it. full: with its spec."""
    values = {name: getattr(job, name) for name in ListedJob._fields} | {"spec": job.spec.document}
    text = {name: to_json(storable_json(values[name])).decode() for name in ("labels", "spec")}
    return ListedJob(**values | text | ({} if full else {"spec": None}))


def attempt_of(row: Sequence[Any], faults: Faults | None = None) -> Attempt:
    """As `job_of`."""
    attempt, wrong = read_or_salvage(ATTEMPT, row)
    if wrong is not None and faults is not None:
        faults[attempt.id] = wrong
    return attempt


def export_of(row: Sequence[Any], faults: Faults | None = None) -> Export:
    """As `job_of`; its name in `faults` is that of its latest submission."""
    export, wrong = read_or_salvage(EXPORT, row)
    if wrong is not None and faults is not None:
        faults[export.submission_id] = wrong
    return export


def without_eta(progress: Any) -> dict[str, Any] | None:
    """The progress of a finished job: without an estimate."""
    return progress | {"eta_s": None} if isinstance(progress, dict) else None
