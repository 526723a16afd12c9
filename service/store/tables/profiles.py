"""Requests for a profile of an attempt, which are events of its job, and the answers of its ranks."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from pydantic import ValidationError

from syncnorm.service.jobs.actors import Actor, NewAuditEntry
from syncnorm.service.jobs.job import Attempt, NewEvent
from syncnorm.service.store import schema as t
from syncnorm.service.store.database import Database
from syncnorm.service.store.record_rows import EVENT, PROFILES
from syncnorm.service.store.statements import add_audit, event_row, lock_job
from syncnorm.service.store.values import StoredProfile
from syncnorm.trainer.contract.profile import MOST_RANKS, PATIENCE_S, ProfileOptions, ProfileRequest

PROFILE_REQUESTED = "profile_requested"


@dataclass(frozen=True)
class Profiled:
    """The newest request of an attempt, and the answers to it. is_late: ranks without an answer will not give one."""

    request: ProfileRequest
    answers: list[StoredProfile]
    is_late: bool

    @property
    def missing(self) -> list[int]:
        return [rank for rank in self.request.ranks if rank not in {one.rank for one in self.answers}]


class ProfileTable:
    """Answers are added by reports.py, under the fence of their attempt."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def request(self, attempt: Attempt, options: ProfileOptions, by: Actor) -> ProfileRequest | None:
        """Ask ranks of an attempt for a profile; None: another one is not finished."""
        ranks = options.ranks if options.ranks is not None else list(range(min(attempt.workers, MOST_RANKS)))
        with self._db.write() as c:
            lock_job(c, t.jobs.c.id == attempt.job_id)
            newest = self._newest(c, attempt)
            if newest is not None and newest.missing and not newest.is_late:
                return None
            wanted = {"seconds": options.seconds, "steps": options.steps, "ranks": sorted(set(ranks))}
            now = self._db.now(c)
            data = {"attempt": attempt.number, **wanted}
            message = f"A profile of attempt {attempt.number} was asked for."
            row = event_row(attempt.job_id, now, NewEvent(PROFILE_REQUESTED, message, data, by))
            number = int(c.execute(sa.insert(t.events).returning(t.events.c.seq), row).scalar_one())
            add_audit(c, now, [NewAuditEntry(by, "job.profile", attempt.job_id, after=data)])
        return ProfileRequest(number=number, **wanted)

    def newest(self, attempt: Attempt) -> Profiled | None:
        """None: nobody has asked for one of this attempt."""
        with self._db.read() as c:
            return self._newest(c, attempt)

    def _newest(self, c: sa.Connection, attempt: Attempt) -> Profiled | None:
        e, p = t.events.c, t.profiles.c
        asked = (e.job_id == attempt.job_id, e.kind == PROFILE_REQUESTED, e.at >= attempt.created_at)
        row = c.execute(EVENT.query.where(*asked).order_by(e.seq.desc()).limit(1)).one_or_none()
        event = None if row is None else EVENT.of(row)
        request = None if event is None else request_of(event.seq, event.data)
        if event is None or request is None:
            return None
        answered = (p.job_id == attempt.job_id, p.attempt == attempt.number, p.request == request.number)
        answers = [PROFILES.of(one) for one in c.execute(PROFILES.query.where(*answered).order_by(p.rank))]
        return Profiled(request, answers, attempt.ended_at is not None or self._is_late(c, request, event.at))

    def _is_late(self, c: sa.Connection, request: ProfileRequest, at: datetime) -> bool:
        return self._db.now(c) > at + timedelta(seconds=request.seconds + PATIENCE_S)


def request_of(number: int, data: Any) -> ProfileRequest | None:
    """The request that an event holds; None: it can't be read."""
    try:
        return ProfileRequest(number=number, **{name: data[name] for name in ("seconds", "steps", "ranks")})
    except (TypeError, KeyError, ValidationError):
        return None
