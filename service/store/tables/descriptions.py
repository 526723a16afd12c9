"""Attempts that the MLflow run of their job does not tell of yet: written down with the attempt, so none is lost."""

from __future__ import annotations

import sqlalchemy as sa

from syncnorm.service.jobs.job import Job
from syncnorm.service.store import schema as t
from syncnorm.service.store.base import JOBS, Tables
from syncnorm.service.store.rows import job_of


class DescriptionTable(Tables):
    """What the describer has yet to do."""

    def undescribed(self, limit: int) -> list[tuple[Job, int]]:
        """Jobs that have a run, oldest first, each with the attempt that the run does not tell of yet."""
        d, j = t.descriptions.c, t.jobs.c
        query = JOBS.add_columns(d.attempt.label("undescribed")).join(t.descriptions, d.job_id == j.id)
        with self._db.read() as c:
            rows = c.execute(query.where(j.run_id.is_not(None)).order_by(j.id).limit(limit)).all()
        return [(job_of(row[:-1]), row[-1]) for row in rows]

    def note_described(self, job_id: str, attempt: int) -> None:
        """The run tells of this attempt."""
        d = t.descriptions.c
        with self._db.write() as c:
            c.execute(sa.delete(t.descriptions).where(d.job_id == job_id, d.attempt == attempt))

    def _ask_for_description(self, c: sa.Connection, job_id: str, attempt: int) -> None:
        c.execute(sa.delete(t.descriptions).where(t.descriptions.c.job_id == job_id))
        c.execute(sa.insert(t.descriptions).values(job_id=job_id, attempt=attempt))
