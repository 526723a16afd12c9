"""What all parts of the store share: the database, its time, and rows as values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from service import schema as t
from service.database import Database
from service.jobs import Attempt, Job, JobState, NewEvent
from trainer.failure import FailureReason

RECONCILER = "reconciler"
"""Name of the lease under which one process at a time decides."""


class Tables:
    """Parts of the store derive from this and keep to their own tables; Store puts them together."""

    def __init__(self, database: Database, clock: Callable[[], datetime] | None = None) -> None:
        """clock: for tests; None takes the time of the database."""
        self._db = database
        self._clock = clock

    def now(self) -> datetime:
        with self._db.read() as c:
            return self._now(c)

    def _now(self, c: sa.Connection) -> datetime:
        return self._clock() if self._clock else self._db.now(c)

    def _add_event(self, c: sa.Connection, job_id: str, event: NewEvent) -> None:
        c.execute(sa.insert(t.events).values(job_id=job_id, at=self._now(c), **asdict(event)))

    def _lease_stands(self, c: sa.Connection, token: int) -> bool:
        return (
            c.execute(
                sa.select(t.leases.c.token).where(t.leases.c.name == RECONCILER, t.leases.c.token == token)
            ).first()
            is not None
        )

    def _insert_new(self, c: sa.Connection, table: sa.Table, row: Mapping[str, Any]) -> bool:
        """Insert unless the key is taken. Whether it was inserted."""
        dialect = sqlite if self._db.is_sqlite else postgresql
        # Not rowcount: psycopg's is gone once the cursor is closed, which SQLAlchemy does for an insert.
        statement = dialect.insert(table).values(**row).on_conflict_do_nothing().returning(sa.literal(1))
        return c.execute(statement).first() is not None


def row_of(value: Job | Attempt) -> dict[str, Any]:
    return {item.name: getattr(value, item.name) for item in fields(value)}


def _reason(row: Mapping[str, Any]) -> FailureReason | None:
    return FailureReason(row["reason"]) if row["reason"] else None


def job_of(row: Mapping[Any, Any]) -> Job:
    return Job(**{**row, "state": JobState(row["state"]), "reason": _reason(row)})


def attempt_of(row: Mapping[Any, Any]) -> Attempt:
    return Attempt(**{**row, "reason": _reason(row)})
