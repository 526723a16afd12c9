"""Which jobs the reconciler and the scheduler have to look at."""

from __future__ import annotations

from collections.abc import Collection
from itertools import pairwise

import sqlalchemy as sa

from syncnorm.service.jobs.job import ACTIVE, Job, JobState
from syncnorm.service.store import schema as t
from syncnorm.service.store.database import Database
from syncnorm.service.store.rows import Faults, job_of
from syncnorm.service.store.statements import JOBS

_CHUNK = 500


class WorkloadTable:
    """Reads alone, each over many jobs."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def jobs(self, ids: Collection[str], faults: Faults | None = None) -> list[Job]:
        """The existing ones, oldest first. faults: gets the problems of rows that can't be read."""
        wanted = sorted(ids)
        j = t.jobs.c
        parts = [wanted[start : start + _CHUNK] for start in range(0, len(wanted), _CHUNK)]
        return [job for part in parts for job in self._jobs(JOBS.where(j.id.in_(part)).order_by(j.id), faults)]

    def versions(self, state: JobState) -> dict[str, int]:
        """Version by id of all jobs in a state."""
        j = t.jobs.c
        with self._db.read() as c:
            return {row[0]: row[1] for row in c.execute(sa.select(j.id, j.version).where(j.state == state))}

    def unsettled(self) -> set[str]:
        """Ids of jobs that need work besides waiting for capacity, see schema.UNSETTLED."""
        with self._db.read() as c:
            return set(c.execute(sa.select(t.jobs.c.id).where(t.UNSETTLED)).scalars())

    def strays(self) -> set[str]:
        """Ids of jobs that no step would ever handle: in an unknown state, or active without an attempt."""
        with self._db.read() as c:
            return set(c.execute(_STRAYS).scalars())

    def _jobs(self, query: sa.Select[tuple[object, ...]], faults: Faults | None) -> list[Job]:
        with self._db.read() as c:
            return [job_of(row, faults) for row in c.execute(query)]


def _unknown_state() -> sa.ColumnElement[bool]:
    """A condition for unknown states, as the ranges between the known ones: each is one index look-up, unlike NOT
    IN."""
    state, known = t.jobs.c.state, sorted(JobState)
    between = [sa.and_(state > one, state < other) for one, other in pairwise(known)]
    return sa.or_(state < known[0], *between, state > known[-1])


_LIVE = sa.select(t.attempts.c.id).where(t.attempts.c.job_id == t.jobs.c.id, t.attempts.c.ended_at.is_(None)).exists()
_STRAYS = sa.union_all(
    sa.select(t.jobs.c.id).where(_unknown_state()),
    sa.select(t.jobs.c.id).where(t.jobs.c.state.in_(ACTIVE), ~_LIVE),
)
