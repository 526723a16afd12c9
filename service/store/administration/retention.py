"""Deletes old rows, one batch in each transaction, so that no other writer waits long."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa

from syncnorm.service.jobs.job import TERMINAL
from syncnorm.service.store import schema as t
from syncnorm.service.store.database import Database
from syncnorm.service.store.report_counts import delete_oldest_lines, set_report_counts
from syncnorm.service.store.statements import lock_job
from syncnorm.trainer.contract.protocol import WORKER_EVENTS

BATCH = 1000
_REPORTED_KINDS = (*sorted(WORKER_EVENTS), "progress", "checkpoint")
_ENDED = t.jobs.c.state.in_(tuple(TERMINAL))


class RetentionTable:
    """Each method that deletes rows deletes at most BATCH of them, and returns how many."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def ended_with_lines(self, before: datetime | None, limit: int = 200) -> list[str]:
        """Jobs whose log lines may be deleted, the first that ended first. before: when they ended; None: at any
        time."""
        j, r = t.jobs.c, t.reported.c
        wanted = [_ENDED, r.lines > 0] + ([] if before is None else [j.finished_at < before])
        return self._ids(sa.select(j.id).join(t.reported).where(*wanted).order_by(j.finished_at).limit(limit))

    def largest_logs(self, limit: int = 20) -> list[str]:
        r = t.reported.c
        return self._ids(sa.select(r.job_id).where(r.lines > 0).order_by(r.characters.desc()).limit(limit))

    def ended_with_events(self, before: datetime, limit: int = 200) -> list[str]:
        """Jobs that ended before this time and whose events have not been checked since."""
        j, r = t.jobs.c, t.reported.c
        due = sa.or_(r.events_pruned_at.is_(None), r.events_pruned_at < j.finished_at)
        wanted = (_ENDED, j.finished_at < before, due)
        return self._ids(sa.select(j.id).join(t.reported).where(*wanted).order_by(j.finished_at).limit(limit))

    def kept_lines(self) -> tuple[int, int]:
        """(log lines, their characters) of all jobs."""
        r = t.reported.c
        sums = (sa.func.coalesce(sa.func.sum(r.lines), 0), sa.func.coalesce(sa.func.sum(r.characters), 0))
        with self._db.read() as c:
            lines, characters = c.execute(sa.select(*sums)).one()
        return int(lines), int(characters)

    def forget_lines(self, job_id: str) -> int:
        with self._db.write() as c:
            lock_job(c, t.jobs.c.id == job_id)
            return delete_oldest_lines(c, job_id, BATCH)

    def forget_reported_events(self, job_id: str) -> int:
        """Delete events of a job's workers. Events of the service and of people stay as long as the job."""
        e = t.events.c
        reported = sa.or_(e.kind.in_(_REPORTED_KINDS), e.kind.startswith("user.", autoescape=True))
        part = sa.select(e.seq).where(e.job_id == job_id, reported).order_by(e.seq).limit(BATCH)
        with self._db.write() as c:
            lock_job(c, t.jobs.c.id == job_id)
            count = c.execute(sa.delete(t.events).where(e.seq.in_(part))).rowcount
            if count < BATCH:
                set_report_counts(c, job_id, events_pruned_at=self._db.now(c))
        return count

    def forget_audit(self, before: datetime) -> int:
        a = t.audit.c
        part = sa.select(a.seq).where(a.at < before).order_by(a.at).limit(BATCH)
        with self._db.write() as c:
            return c.execute(sa.delete(t.audit).where(a.seq.in_(part))).rowcount

    def forget_answers(self, before: datetime) -> int:
        """Delete old idempotency keys: from then on the same key makes a new job."""
        i = t.idempotency.c
        part = sa.select(i.owner, i.key).where(i.at < before).order_by(i.at).limit(BATCH)
        with self._db.write() as c:
            return c.execute(sa.delete(t.idempotency).where(sa.tuple_(i.owner, i.key).in_(part))).rowcount

    def size_bytes(self) -> int:
        """Of the database."""
        sqlite = "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()"
        query = sqlite if self._db.is_sqlite else "SELECT pg_database_size(current_database())"
        with self._db.read() as c:
            return int(c.execute(sa.text(query)).scalar_one())

    def give_space_back(self, pages: int = 1000) -> bool:
        """Shrink the file of an SQLite database by some of its free pages; whether there may be more.

        PostgreSQL does so by itself. A file made by a version before this one only uses its free pages again.
        """
        if not self._db.is_sqlite:
            return False
        with self._db.write() as c:
            before = c.exec_driver_sql("PRAGMA freelist_count").scalar_one()
            # By the driver: the pragma moves a page with each row that is asked for, and has none that SQLAlchemy sees.
            c.connection.cursor().execute(f"PRAGMA incremental_vacuum({pages})").fetchall()
            return bool(0 < c.exec_driver_sql("PRAGMA freelist_count").scalar_one() < before)

    def _ids(self, query: sa.Select[Any]) -> list[str]:
        with self._db.read() as c:
            return [row[0] for row in c.execute(query)]
