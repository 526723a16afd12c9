"""Ends jobs, attempts and exports that can't be handled, with updates that depend on nothing else in their rows.

Fields that can't be read are replaced on the way (see rows.py), so that the row can be shown, retried and deleted
later.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa

from syncnorm.service.jobs.exports.export import ExportState
from syncnorm.service.jobs.job import TERMINAL, Job, JobState, NewEvent
from syncnorm.service.store import schema as t
from syncnorm.service.store.columns import read_or_salvage
from syncnorm.service.store.database import Database
from syncnorm.service.store.rows import ATTEMPT, EXPORT, JOB, export_of, job_of, without_eta
from syncnorm.service.store.statements import add_event, lease_stands, lock_job
from syncnorm.service.store.tables.exports import note_on_job
from syncnorm.trainer.contract.failure import FailureReason
from syncnorm.trainer.contract.text import storable

_LONGEST_SENTENCE = 1000
_LONGEST_TRACE = 8000


class SetAsideTable:
    """Ends what the service could not handle. `why`: a sentence; `trace`: the traceback."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def job(self, job_id: str, why: str, trace: str = "", lease: int | None = None) -> JobState | None:
        """End a job and its attempts: cancelled if that was requested, else failed; a finished one stays so.

        Returns its state now; None if there is no such job or this replica no longer holds the lease.
        """
        j = t.jobs.c
        with self._db.write() as c:
            if not lease_stands(c, lease):
                return None
            lock_job(c, j.id == job_id)
            row = c.execute(JOB.query.where(j.id == job_id)).one_or_none()
            if row is None:
                return None
            now = self._db.now(c)
            job, mended, _ = JOB.salvage(row, now)
            is_over = row.state in TERMINAL
            to = JobState(row.state) if is_over else _end(row.stop)
            closing = {} if is_over else _closing(to, why, trace, now) | {"progress": without_eta(job.progress)}
            if "attempt" in mended:
                mended["attempt"] = _latest_attempt(c, job_id)
            values = {**mended, **closing, "stop": None, "stop_at": None, "version": job.version + 1}
            c.execute(sa.update(t.jobs).where(j.id == job_id).values(**values))
            self._end_attempts(c, job_id, why, trace)
            if not is_over:
                add_event(c, job_id, self._db.now(c), NewEvent(to, _sentence(why), _event_data(row, to, trace)))
        return to

    def unreadable_job(self, job_id: str) -> Job | None:
        """The same with a job whose row can't be read, as it is then; None if it can be read, or is not there."""
        of_this_job = JOB.query.where(t.jobs.c.id == job_id)
        with self._db.read() as c:
            row = c.execute(of_this_job).one_or_none()
        wrong = None if row is None else read_or_salvage(JOB, row)[1]
        if wrong is None:
            return None
        self.job(job_id, f"The stored job can't be read, so the job can't continue: {wrong}.")
        with self._db.read() as c:
            row = c.execute(of_this_job).one_or_none()
        return None if row is None else job_of(row)

    def _end_attempts(self, c: sa.Connection, job_id: str, why: str, trace: str) -> None:
        """Their processes are stopped, and their capacity is released, as for any ended attempt."""
        a, now = t.attempts.c, self._db.now(c)
        closing = {"outcome": "failed", "reason": FailureReason.INTERNAL, "message": _text(why, trace), "ended_at": now}
        for row in c.execute(ATTEMPT.query.where(a.job_id == job_id, a.released_at.is_(None))).all():
            _, mended, _ = ATTEMPT.salvage(row, now)
            values = {**mended, **(closing if row.ended_at is None or "ended_at" in mended else {})}
            if values:
                c.execute(sa.update(t.attempts).where(a.id == row.id).values(**values))

    def export(self, job_id: str, number: int, why: str, lease: int | None = None) -> None:
        """Fail an export; one that has ended and can't be released is released."""
        e = t.exports.c
        key = (e.job_id == job_id, e.number == number)
        with self._db.write() as c:
            if not lease_stands(c, lease):
                return
            lock_job(c, t.jobs.c.id == job_id)
            row = c.execute(EXPORT.query.where(*key)).one_or_none()
            if row is None:
                return
            now = self._db.now(c)
            export, mended, _ = EXPORT.salvage(row, now)
            values: dict[str, Any] = {**mended, "version": export.version + 1}
            if row.finished_at is not None and "finished_at" not in mended:
                values["released_at"] = now
            else:
                failed = {"state": ExportState.FAILED, "reason": FailureReason.INTERNAL, "message": _sentence(why)}
                values |= {**failed, "finished_at": now}
                about = {"export": export.name, "reason": FailureReason.INTERNAL.value}
                text = _sentence(f"Export {export.name} failed: {why}")
                add_event(c, job_id, now, NewEvent("export_failed", text, about))
            c.execute(sa.update(t.exports).where(*key).values(**values))
            note_on_job(c, export_of(c.execute(EXPORT.query.where(*key)).one()))

    def release_uncounted(self, attempt_id: str, lease: int | None = None) -> None:
        """Free the capacity of an ended attempt whose usage can't be added up."""
        a = t.attempts.c
        with self._db.write() as c:
            if not lease_stands(c, lease):
                return
            guard = (a.id == attempt_id, a.released_at.is_(None), a.ended_at.is_not(None))
            c.execute(sa.update(t.attempts).where(*guard).values(released_at=self._db.now(c)))


def _latest_attempt(c: sa.Connection, job_id: str) -> int:
    a = t.attempts.c
    return int(c.execute(sa.select(sa.func.max(a.number)).where(a.job_id == job_id)).scalar_one() or 0)


def _end(stop: Any) -> JobState:
    return JobState.CANCELLED if stop == "cancel" else JobState.FAILED


def _closing(to: JobState, why: str, trace: str, now: datetime) -> dict[str, Any]:
    return {"state": to, "reason": _reason(to), "message": _text(why, trace), "finished_at": now}


def _reason(to: JobState) -> FailureReason:
    return FailureReason.CANCELLED_BY_USER if to is JobState.CANCELLED else FailureReason.INTERNAL


def _event_data(row: sa.Row[Any], to: JobState, trace: str) -> dict[str, Any]:
    about = {"from": storable(str(row.state), 40), "reason": _reason(to).value}
    return about | ({"traceback": storable(trace[-_LONGEST_TRACE:])} if trace else {})


def _sentence(why: str) -> str:
    return storable(why, _LONGEST_SENTENCE)


def _text(why: str, trace: str) -> str:
    """Cut the beginning of a traceback, since its end says most."""
    return f"{_sentence(why)}\n\n{storable(trace[-_LONGEST_TRACE // 2 :])}".strip()
