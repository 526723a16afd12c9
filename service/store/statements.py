"""Statements that several tables share, each part of its caller's transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from syncnorm.service.jobs.actors import NewAuditEntry
from syncnorm.service.jobs.job import Attempt, Job, NewEvent
from syncnorm.service.store import schema as t
from syncnorm.service.store.rows import ATTEMPT, JOB, job_of

RECONCILER = "reconciler"
"""Name of the reconciler's lease."""


def lock_job(c: sa.Connection, which: sa.ColumnElement[bool]) -> None:
    """Lock the job's row before anything else of it is locked or added, so that no two transactions deadlock.

    It also makes events and lines of a job visible in the order of their numbers, so a follower can resume after the
    last one it saw.
    """
    if not _is_sqlite(c):  # SQLite has one writer at a time anyway
        c.execute(sa.select(t.jobs.c.id).where(which).with_for_update(key_share=True))


def job_of_attempt(c: sa.Connection, attempt: Attempt) -> Job:
    return job_of(c.execute(JOBS.where(t.jobs.c.id == attempt.job_id)).one())


def lease_stands(c: sa.Connection, token: int | None) -> bool:
    """Whether the reconciler's lease with this token still stands; None: nobody asks for it."""
    if token is None:
        return True
    held = sa.select(t.leases.c.token).where(t.leases.c.name == RECONCILER, t.leases.c.token == token)
    return c.execute(held).first() is not None


def add_event(c: sa.Connection, job_id: str, at: datetime, event: NewEvent) -> None:
    c.execute(INSERT_EVENT, [event_row(job_id, at, event)])


def event_row(job_id: str, at: datetime, event: NewEvent) -> dict[str, Any]:
    by = event.by
    actor = {"actor_kind": by.kind, "actor": by.owner, "token_id": by.token_id, "request_id": by.request_id}
    return {"job_id": job_id, "at": at, "kind": event.kind, "message": event.message, "data": event.data, **actor}


def add_audit(c: sa.Connection, at: datetime, entries: Sequence[NewAuditEntry]) -> None:
    """Audit entries are written in the transaction of their change, so that neither exists without the other."""
    if entries:
        c.execute(_INSERT_AUDIT, [_audit_row(entry, at) for entry in entries])


def _audit_row(entry: NewAuditEntry, at: datetime) -> dict[str, Any]:
    by = entry.by
    return {
        **{name: value for name, value in vars(entry).items() if name != "by"},
        "object": entry.object[:400],
        "at": at,
        "actor_kind": by.kind,
        "owner": by.owner or "",
        "token_id": by.token_id,
        "request_id": by.request_id or "",
    }


def columns(table: sa.Table, value: object) -> dict[str, Any]:
    """What of a value has a column."""
    return {name: item for name, item in vars(value).items() if name in table.c}


def insert_new(c: sa.Connection, table: sa.Table, row: Mapping[str, Any]) -> bool:
    """Insert unless the key exists; returns whether it was inserted."""
    # Not rowcount: psycopg's is gone once the cursor is closed, which SQLAlchemy does for an insert.
    statement = insert_or_ignore(table, is_sqlite=_is_sqlite(c)).values(**row).returning(sa.literal(1))
    return c.execute(statement).first() is not None


def insert_or_ignore(table: sa.Table, *, is_sqlite: bool) -> sqlite.Insert | postgresql.Insert:
    """An insert that skips existing keys."""
    if is_sqlite:
        return sqlite.insert(table).on_conflict_do_nothing()
    return postgresql.insert(table).on_conflict_do_nothing()


def _is_sqlite(c: sa.Connection) -> bool:
    return c.dialect.name == "sqlite"


def row_of(value: Job | Attempt) -> dict[str, Any]:
    return {**vars(value), "spec": value.spec.document} if isinstance(value, Job) else dict(vars(value))


_INSERT_AUDIT = sa.insert(t.audit)
INSERT_EVENT = sa.insert(t.events)
"""Not with .values(): a statement built anew costs more than running it."""
JOBS = JOB.query
ATTEMPTS = ATTEMPT.query
