"""What all parts of the store share: the database, its time, and rows as values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from syncnorm.service.jobs.actors import Deed
from syncnorm.service.jobs.job import Attempt, Job, NewEvent
from syncnorm.service.store import schema as t
from syncnorm.service.store.database import Database
from syncnorm.service.store.rows import ATTEMPT, JOB, job_of

RECONCILER = "reconciler"
"""Name of the lease under which one process at a time decides."""


class Tables:
    """Parts of the store derive from this and keep to their own tables; Store puts them together."""

    def __init__(self, database: Database, clock: Callable[[], datetime] | None = None) -> None:
        """clock: for tests; None takes the time of the database."""
        self._db = database
        self._clock = clock
        l = t.log_lines  # noqa: E741
        self._add_line = self._insert(l).returning(sa.func.length(l.c.text))
        self._take_key = self._insert(t.idempotency).returning(t.idempotency.c.owner, t.idempotency.c.key)

    def now(self) -> datetime:
        return self._clock() if self._clock else self._db.now()

    def _now(self, c: sa.Connection) -> datetime:
        return self._clock() if self._clock else self._db.now(c)

    def _lock_job(self, c: sa.Connection, which: sa.ColumnElement[bool]) -> None:
        """Taken before anything else of a job is locked or added, so that nobody waits in a circle, and events and
        lines of a job become visible in the order of their numbers: a follower goes on behind the last one it saw.
        """
        if not self._db.is_sqlite:  # which has one writer at a time anyway
            c.execute(sa.select(t.jobs.c.id).where(which).with_for_update(key_share=True))

    def _add_event(self, c: sa.Connection, job_id: str, event: NewEvent) -> None:
        c.execute(INSERT_EVENT, [event_row(job_id, self._now(c), event)])

    def _audit(self, c: sa.Connection, deeds: Sequence[Deed]) -> None:
        """Written with the change they tell of, so that there is neither without the other."""
        if deeds:
            now = self._now(c)
            c.execute(_INSERT_DEED, [_deed_row(deed, now) for deed in deeds])

    def _job_of(self, c: sa.Connection, attempt: Attempt) -> Job:
        return job_of(c.execute(JOBS.where(t.jobs.c.id == attempt.job_id)).one())

    def _lease_stands(self, c: sa.Connection, token: int) -> bool:
        return (
            c.execute(
                sa.select(t.leases.c.token).where(t.leases.c.name == RECONCILER, t.leases.c.token == token)
            ).first()
            is not None
        )

    def _reported(self, c: sa.Connection, job_id: str) -> sa.Row[int, int, int, int | None]:
        """How much the workers of a job have reported."""
        r = t.reported.c
        query = sa.select(r.lines, r.characters, r.events, r.progress_seq).where(r.job_id == job_id)
        if (row := c.execute(query).one_or_none()) is None:
            self._insert_new(c, t.reported, {"job_id": job_id})
            row = c.execute(query).one()
        return row

    def _note_reported(self, c: sa.Connection, job_id: str, **values: Any) -> None:
        c.execute(sa.update(t.reported).where(t.reported.c.job_id == job_id).values(**values))

    def _forget_lines(self, c: sa.Connection, job_id: str, most: int) -> int:
        """Remove the oldest lines of a job; how many."""
        l, r = t.log_lines.c, t.reported.c  # noqa: E741
        oldest = sa.select(l.id, sa.func.length(l.text).label("size")).where(l.job_id == job_id).order_by(l.id)
        part = oldest.limit(most).subquery()
        count, size, last = c.execute(
            sa.select(sa.func.count(), sa.func.sum(part.c.size), sa.func.max(part.c.id))
        ).one()
        if not count:
            c.execute(sa.update(t.reported).where(r.job_id == job_id).values(lines=0, characters=0))
            return 0
        c.execute(sa.delete(t.log_lines).where(l.job_id == job_id, l.id <= last))
        less = {r.lines: r.lines - count, r.characters: r.characters - size, r.pruned: r.pruned + count}
        c.execute(sa.update(t.reported).where(r.job_id == job_id).values({**less, r.pruned_to: last}))
        return int(count)

    def _insert_new(self, c: sa.Connection, table: sa.Table, row: Mapping[str, Any]) -> bool:
        """Insert unless the key is taken. Whether it was inserted."""
        # Not rowcount: psycopg's is gone once the cursor is closed, which SQLAlchemy does for an insert.
        return c.execute(self._insert(table).values(**row).returning(sa.literal(1))).first() is not None

    def _insert(self, table: sa.Table) -> sqlite.Insert | postgresql.Insert:
        """An insert that leaves rows alone whose key is taken."""
        if self._db.is_sqlite:
            return sqlite.insert(table).on_conflict_do_nothing()
        return postgresql.insert(table).on_conflict_do_nothing()


def event_row(job_id: str, at: datetime, event: NewEvent) -> dict[str, Any]:
    by = event.by
    actor = {"actor_kind": by.kind, "actor": by.owner, "token_id": by.token_id, "request_id": by.request_id}
    return {"job_id": job_id, "at": at, "kind": event.kind, "message": event.message, "data": event.data, **actor}


def _deed_row(deed: Deed, at: datetime) -> dict[str, Any]:
    by = deed.by
    return {
        **{name: value for name, value in vars(deed).items() if name != "by"},
        "object": deed.object[:400],
        "at": at,
        "actor_kind": by.kind,
        "owner": by.owner or "",
        "token_id": by.token_id,
        "request_id": by.request_id or "",
    }


_INSERT_DEED = sa.insert(t.audit)
INSERT_EVENT = sa.insert(t.events)
"""Not with .values(): a statement built anew costs more than running it."""
JOBS = JOB.query
ATTEMPTS = ATTEMPT.query


def row_of(value: Job | Attempt) -> dict[str, Any]:
    return dict(vars(value))
