"""Requests to an attempt's processes, which are events of its job, and the stacks that they answer with."""

from __future__ import annotations

from datetime import timedelta

import sqlalchemy as sa

from syncnorm.service.jobs.actors import Actor
from syncnorm.service.jobs.job import Attempt, NewEvent
from syncnorm.service.store import schema as t
from syncnorm.service.store.database import Database
from syncnorm.service.store.record_rows import EVENT, STACKS
from syncnorm.service.store.statements import event_row, lock_job
from syncnorm.service.store.tables.profiles import PROFILE_REQUESTED, request_of
from syncnorm.service.store.values import Changes, Heads, StoredStacks
from syncnorm.trainer.contract.protocol import Requests

STACKS_REQUESTED = "stacks_requested"
_REQUESTS = (STACKS_REQUESTED, PROFILE_REQUESTED)
_SHARED = timedelta(seconds=2)
"""Who asks so soon after somebody else gets the same answer, so that nobody can keep the processes busy with it."""


class StackTable:
    """Answers are added by reports.py, under the fence of their attempt."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def request(self, attempt: Attempt, by: Actor) -> int:
        """Ask all processes of an attempt for their stacks; returns the number of the request."""
        e = t.events.c
        asked = (e.job_id == attempt.job_id, e.kind == STACKS_REQUESTED)
        with self._db.write() as c:
            lock_job(c, t.jobs.c.id == attempt.job_id)
            now = self._db.now(c)
            recent = sa.select(sa.func.max(e.seq)).where(*asked, e.at > now - _SHARED, e.at >= attempt.created_at)
            if (seq := c.execute(recent).scalar()) is not None:
                return int(seq)
            message = f"The stacks of attempt {attempt.number} were asked for."
            row = event_row(attempt.job_id, now, NewEvent(STACKS_REQUESTED, message, {"attempt": attempt.number}, by))
            return int(c.execute(sa.insert(t.events).returning(e.seq), row).scalar_one())

    def requests_of(self, job_id: str, known: int | None) -> Requests:
        """What is asked of a job's processes since `known`; None: nothing, only the number of the newest request."""
        e = t.events.c
        newest = sa.select(sa.func.max(e.seq)).where(e.job_id == job_id)
        with self._db.read() as c:
            stacks, profile = (c.execute(newest.where(e.kind == kind)).scalar() or 0 for kind in _REQUESTS)
            if known is None or profile <= known:
                return Requests(newest=max(stacks, profile), stacks=known is not None and stacks > known)
            event = EVENT.of(c.execute(EVENT.query.where(e.seq == profile)).one())
        return Requests(newest=max(stacks, profile), stacks=stacks > known, profile=request_of(profile, event.data))

    def requests_since(self, since: Heads | None) -> Changes:
        """The jobs with requests after `since`, and where to go on."""
        e = t.events.c
        with self._db.read() as c:
            heads = (c.execute(sa.select(sa.func.max(e.seq))).scalar() or 0, 0)
            if since is None or heads == since:
                return Changes(heads, set())
            asked = sa.select(e.job_id).where(e.seq > since[0], e.kind.in_(_REQUESTS))
            return Changes(heads, set(c.execute(asked).scalars()))

    def of_attempt(self, job_id: str, number: int) -> list[StoredStacks]:
        """The latest of each process that has answered, the driver's first."""
        s = t.stacks.c
        with self._db.read() as c:
            rows = c.execute(STACKS.query.where(s.job_id == job_id, s.attempt == number).order_by(s.rank))
            return [STACKS.of(row) for row in rows]
