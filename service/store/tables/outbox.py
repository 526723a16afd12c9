"""Work that a transaction wrote down for later, so that none is forgotten: runs to describe, files to remove, events
to tell webhook receivers."""

from __future__ import annotations

import sqlalchemy as sa

from syncnorm.service.jobs.job import Job
from syncnorm.service.store import schema as t
from syncnorm.service.store.database import Database
from syncnorm.service.store.rows import job_of
from syncnorm.service.store.statements import JOBS, insert_new


class DescriptionTable:
    """Attempts whose facts are not in the MLflow run yet."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def pending(self, limit: int) -> list[tuple[Job, int]]:
        """Jobs with a run, oldest first, each with the attempt that is not in the run yet."""
        d, j = t.descriptions.c, t.jobs.c
        query = JOBS.add_columns(d.attempt.label("undescribed")).join(t.descriptions, d.job_id == j.id)
        with self._db.read() as c:
            rows = c.execute(query.where(j.run_id.is_not(None)).order_by(j.id).limit(limit)).all()
        return [(job_of(row[:-1]), row[-1]) for row in rows]

    def done(self, job: Job, attempt: int) -> None:
        """The run tells of this attempt, as far as `job` did. What has been reported meanwhile is described next."""
        d, j = t.descriptions.c, t.jobs.c
        with self._db.write() as c:
            guarantees = c.execute(sa.select(j.guarantees).where(j.id == job.id)).scalar()
            if guarantees == job.guarantees:
                c.execute(sa.delete(t.descriptions).where(d.job_id == job.id, d.attempt == attempt))


def request_description(c: sa.Connection, job_id: str, attempt: int) -> None:
    """In the transaction that writes the attempt down, or a report of it."""
    c.execute(sa.delete(t.descriptions).where(t.descriptions.c.job_id == job_id))
    c.execute(sa.insert(t.descriptions).values(job_id=job_id, attempt=attempt))


class RemovalTable:
    """Deleted jobs whose files are still on the storage."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def pending(self, limit: int) -> list[str]:
        """Ids of deleted jobs, oldest first."""
        r = t.removals.c
        with self._db.read() as c:
            return list(c.execute(sa.select(r.job_id).order_by(r.deleted_at, r.job_id).limit(limit)).scalars())

    def done(self, job_id: str) -> None:
        """Record that no file of the job is on the storage any more."""
        with self._db.write() as c:
            c.execute(sa.delete(t.removals).where(t.removals.c.job_id == job_id))


class WebhookTable:
    """How far each webhook receiver has got."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def position(self, receiver: str) -> int:
        """The position of a webhook receiver; a new one begins with the events from now on."""
        w = t.webhooks.c
        with self._db.write() as c:
            newest = c.execute(sa.select(sa.func.max(t.events.c.seq))).scalar() or 0
            insert_new(c, t.webhooks, {"receiver": receiver, "position": newest})
            return int(c.execute(sa.select(w.position).where(w.receiver == receiver)).scalar_one())

    def set_position(self, receiver: str, position: int) -> None:
        with self._db.write() as c:
            c.execute(sa.update(t.webhooks).where(t.webhooks.c.receiver == receiver).values(position=position))
