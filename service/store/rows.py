"""Rows as values, one at a time: what can't be read of one row is replaced and named, and hurts no other row.

A row may have been written by another version, by hand, or before a bound was there: a state nobody knows, a date that
is none, JSON that is cut off, an infinite number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from functools import cached_property
from types import NoneType
from typing import Any, Generic, TypeVar, get_args

import sqlalchemy as sa
from pydantic_core import from_json, to_json

from syncnorm.service.jobs.export import Export, ExportState
from syncnorm.service.jobs.job import Attempt, Job, JobState
from syncnorm.service.jobs.stored_spec import StoredSpec
from syncnorm.service.store import schema as t
from syncnorm.service.store.values import ListedJob
from syncnorm.trainer.contract.failure import FailureReason
from syncnorm.trainer.contract.protocol import Phase, StopRequest
from syncnorm.trainer.contract.text import storable, storable_json

T = TypeVar("T")

PHASES: tuple[Phase, ...] = get_args(Phase)
"""In the order in which an attempt goes through them."""
Faults = dict[str, str]
"""What is wrong with rows that can't be read, by their id."""
_LONGEST_SHOWN = 60


class UnreadableError(ValueError):
    """A column holds what it can't hold."""


def _reason(value: str) -> FailureReason:
    """One that only a newer version knows reads as `internal` here."""
    return FailureReason(value) if value in _REASONS else FailureReason.INTERNAL


_REASONS = frozenset(reason.value for reason in FailureReason)


def _one_of(allowed: Sequence[str]) -> Callable[[str], str]:
    def check(value: str) -> str:
        if value not in allowed:
            raise UnreadableError(f"must be one of {', '.join(allowed)}")
        return value

    return check


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise UnreadableError("must be a finite number")
    return value


def _json_text(value: str) -> str:
    from_json(value, allow_inf_nan=False)
    return value


def _phases(value: Any) -> Any:
    for name, at in value.items():
        if name not in PHASES or datetime.fromisoformat(at).tzinfo is None:
            raise UnreadableError("must be times by phase")
    return value


@dataclass(frozen=True)
class Column:
    """name, allowed Python types, a further check that makes the value, and what stands for an unreadable one."""

    name: str
    kinds: frozenset[type]
    read: Callable[[Any], Any] | None
    default: Any

    def value(self, raw: Any) -> Any:
        """Raises: Exception, of whatever kind, if the row holds what it can't hold."""
        if type(raw) not in self.kinds:
            raise UnreadableError(f"must be {_type_names(self.kinds)}")
        return raw if raw is None or self.read is None else self.read(raw)


def _type_names(kinds: frozenset[type]) -> str:
    return " or ".join(sorted(_TYPE_NAMES[kind] for kind in kinds))


_TYPE_NAMES = {NoneType: "null", datetime: "a time", str: "text", int: "a whole number", float: "a number"}
_TYPE_NAMES |= {dict: "a JSON object", list: "a JSON array"}


@dataclass(frozen=True)
class RowReader(Generic[T]):
    """How rows of one table are read. columns: in the order of the value's fields, so that rows are read by position:
    by name takes three times as long."""

    table: sa.Table
    make: Callable[..., T]
    columns: tuple[Column, ...]

    @cached_property
    def query(self) -> sa.Select[Any]:
        return sa.select(*(self.table.c[column.name] for column in self.columns))

    @cached_property
    def _names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    @cached_property
    def _kinds(self) -> tuple[frozenset[type], ...]:
        return tuple(column.kinds for column in self.columns)

    @cached_property
    def _readers(self) -> tuple[tuple[str, Callable[[Any], Any]], ...]:
        return tuple((column.name, column.read) for column in self.columns if column.read is not None)

    def read(self, row: Sequence[Any]) -> T:
        """Raises: Exception if the row can't be read as it should."""
        for raw, kinds in zip(row, self._kinds, strict=True):
            if type(raw) not in kinds:
                raise UnreadableError(f"must be {_type_names(kinds)}")
        values = dict(zip(self._names, row, strict=True))
        for name, read in self._readers:
            if values[name] is not None:
                values[name] = read(values[name])
        return self.make(**values)

    def salvage(self, row: Sequence[Any], now: datetime) -> tuple[T, dict[str, Any], str]:
        """(as much as can be read, what the other columns are to hold, what is wrong with them)."""
        values, mended, wrong = {}, {}, []
        for column, raw in zip(self.columns, row, strict=True):
            try:
                values[column.name] = column.value(raw)
            except Exception as error:
                mended[column.name] = default = now if column.default is datetime else column.default
                values[column.name] = default if column.read is None or default is None else column.read(default)
                wrong.append(f"{column.name} {error}, got {_shown(raw)}")
        return self.make(**values), mended, storable("; ".join(wrong), 500)


def _shown(raw: Any) -> str:
    text = repr(raw) if isinstance(raw, str | int | float | NoneType) else f"{type(raw).__name__} {raw}"
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + " …"


Special = Mapping[str, tuple[Callable[[Any], Any] | None, Any]]
"""(further check that makes the value, what stands for an unreadable one) of columns whose type does not say it."""


def _row_reader(table: sa.Table, value: type[T], special: Special) -> RowReader[T]:
    columns = (table.c[item.name] for item in fields(value))  # type: ignore[arg-type]
    return RowReader(table, value, tuple(_column(column, special) for column in columns))


def _listed_reader() -> RowReader[ListedJob]:
    """labels, spec: read as text, see Listed."""
    columns = {name: _column(t.jobs.c[name], _JOB_SPECIAL) for name in ListedJob._fields}
    labels = Column("labels", frozenset({str}), _json_text, "{}")
    spec = Column("spec", frozenset({str, NoneType}), _json_text, None)
    return RowReader(t.jobs, ListedJob, tuple((columns | {"labels": labels, "spec": spec}).values()))


def _column(column: sa.Column[Any], special: Special) -> Column:
    kinds, read, default = _KINDS[type(column.type)]
    if column.name == "placement":
        kinds = frozenset({list})
    read, default = special.get(column.name, (read, default))
    if column.nullable:
        return Column(column.name, kinds | {NoneType}, read, None)
    return Column(column.name, kinds, read, default)


_KINDS: dict[type, tuple[frozenset[type], Callable[[Any], Any] | None, Any]] = {
    t.Instant: (frozenset({datetime}), None, datetime),
    sa.Integer: (frozenset({int}), None, 0),
    sa.BigInteger: (frozenset({int}), None, 0),
    sa.Float: (frozenset({float, int}), _finite, 0.0),
    sa.String: (frozenset({str}), None, ""),
    sa.Text: (frozenset({str}), None, ""),
    sa.JSON: (frozenset({dict}), None, {}),
}
_REASON: tuple[Callable[[Any], Any], Any] = (_reason, None)
_JOB_SPECIAL: Special = {
    "state": (JobState, JobState.FAILED),
    "reason": _REASON,
    "spec": (StoredSpec, {}),
    "stop": (_one_of(get_args(StopRequest)), None),
    "workers": (None, 1),
    "grace_s": (_finite, 60.0),
}
_ATTEMPT_SPECIAL: Special = {
    "reason": _REASON,
    "phase": (_one_of(PHASES), None),
    "phases": (_phases, None),
    "workers": (None, 1),
}
JOB = _row_reader(t.jobs, Job, _JOB_SPECIAL)
ATTEMPT = _row_reader(t.attempts, Attempt, _ATTEMPT_SPECIAL)
LISTED = _listed_reader()
EXPORT = _row_reader(t.exports, Export, {"state": (ExportState, ExportState.FAILED), "reason": _REASON})


def job_of(row: Sequence[Any], faults: Faults | None = None) -> Job:
    """A job; of one that can't be read, as much as can be, as failed unless it is over. faults: where that is noted."""
    job, wrong = _read_or_salvage(JOB, row)
    if wrong is None:
        return job
    if faults is not None:
        faults[job.id] = wrong
    return unreadable_job(job, wrong)


def unreadable_job(job: Job, wrong: str) -> Job:
    if (job.is_terminal and job.reason is not None) or job.state in (JobState.SUCCEEDED, JobState.CANCELLED):
        return job
    said = f"The stored job can't be read, so it can't go on: {wrong}."
    return replace(job, state=JobState.FAILED, reason=FailureReason.INTERNAL, message=said, stop=None)


def listed_of(job: Job, *, full: bool) -> ListedJob:
    """A job as a list shows it, made of what could be read of it. full: with its spec."""
    values = {name: getattr(job, name) for name in ListedJob._fields} | {"spec": job.spec.document}
    text = {name: to_json(storable_json(values[name])).decode() for name in ("labels", "spec")}
    return ListedJob(**values | text | ({} if full else {"spec": None}))


def attempt_of(row: Sequence[Any], faults: Faults | None = None) -> Attempt:
    """As `job_of`."""
    attempt, wrong = _read_or_salvage(ATTEMPT, row)
    if wrong is not None and faults is not None:
        faults[attempt.id] = wrong
    return attempt


def export_of(row: Sequence[Any], faults: Faults | None = None) -> Export:
    """As `job_of`; its name in `faults` is that of its latest submission."""
    export, wrong = _read_or_salvage(EXPORT, row)
    if wrong is not None and faults is not None:
        faults[export.submission_id] = wrong
    return export


def _read_or_salvage(reader: RowReader[T], row: Sequence[Any]) -> tuple[T, str | None]:
    """(the value, what is wrong with its row)."""
    try:
        return reader.read(row), None
    except Exception:
        value, _, wrong = reader.salvage(row, datetime.now(UTC))
        return value, wrong


def without_eta(progress: Any) -> dict[str, Any] | None:
    """The progress of a job that is over: nothing is left to wait for."""
    return progress | {"eta_s": None} if isinstance(progress, dict) else None
