"""The history of a job: events, log lines and checkpoints, in the order in which they came."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

import sqlalchemy as sa

from syncnorm.service.jobs.job import NewEvent
from syncnorm.service.store import schema as t
from syncnorm.service.store.database import Database
from syncnorm.service.store.record_rows import CHECKPOINT, EVENT, LINE
from syncnorm.service.store.statements import add_event, lock_job
from syncnorm.service.store.values import Changes, Heads, StoredCheckpoint, StoredEvent, StoredLine


class HistoryTable:
    """Records that are only ever added to."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def add_event(self, job_id: str, event: NewEvent) -> None:
        with self._db.write() as c:
            lock_job(c, t.jobs.c.id == job_id)
            add_event(c, job_id, self._db.now(c), event)

    def events(self, job_id: str, after: int = 0, limit: int = 200, *, tail: bool = False) -> list[StoredEvent]:
        """In order. tail: the last ones instead of the first ones."""
        e = t.events.c
        query = EVENT.query.where(e.job_id == job_id, e.seq > after)
        query = query.order_by(e.seq.desc() if tail else e.seq).limit(limit)
        with self._db.read() as c:
            found = [EVENT.of(row) for row in c.execute(query)]
        return found[::-1] if tail else found

    def lines(
        self,
        job_id: str,
        *,
        after: int = 0,
        limit: int = 200,
        tail: bool = False,
        attempt: int | None = None,
        rank: int | None = None,
        text: str | None = None,
    ) -> list[StoredLine]:
        """Log lines in order of arrival. tail: the last ones instead of the first ones.

        If earlier lines were pruned, one line stands for them and says so.
        """
        l = t.log_lines.c  # noqa: E741
        wanted = [l.job_id == job_id, l.id > after]
        if attempt is not None:
            wanted.append(l.attempt == attempt)
        if rank is not None:
            wanted.append(l.rank == rank)
        if text is not None:
            wanted.append(l.text.contains(text, autoescape=True))
        query = LINE.query.where(*wanted).order_by(l.id.desc() if tail else l.id).limit(limit)
        r = t.reported.c
        gone = sa.select(r.pruned, r.pruned_to).where(r.job_id == job_id, r.pruned_to > after)
        with self._db.read() as c:
            found = [LINE.of(row) for row in c.execute(query)]
            pruned = c.execute(gone).one_or_none()
        if pruned is not None and (not tail or len(found) < limit):
            found = [*found, _stand_in(*pruned)] if tail else [_stand_in(*pruned), *found[: limit - 1]]
        return found[::-1] if tail else found

    def checkpoints(self, job_id: str) -> list[StoredCheckpoint]:
        k = t.checkpoints.c
        query = CHECKPOINT.query.where(k.job_id == job_id).order_by(k.step.desc(), k.attempt.desc())
        with self._db.read() as c:
            return [CHECKPOINT.of(row) for row in c.execute(query)]

    def changes_since(self, since: Heads | None) -> Changes:
        """The newest event and log line, and the jobs with any after `since`."""
        e, l = t.events.c, t.log_lines.c  # noqa: E741
        with self._db.read() as c:
            ends = sa.select(
                sa.select(sa.func.max(e.seq)).scalar_subquery(), sa.select(sa.func.max(l.id)).scalar_subquery()
            )
            seq, line = c.execute(ends).one()
            heads = (seq or 0, line or 0)
            if since is None or heads == since:
                return Changes(heads, set())
            events = sa.select(e.job_id).where(e.seq > since[0])
            lines = sa.select(l.job_id).where(l.id > since[1])
            return Changes(heads, set(c.execute(events.union(lines)).scalars()))

    def events_of_kinds(self, kinds: Collection[str], after: int, until: datetime, limit: int) -> list[StoredEvent]:
        """Events of all jobs, oldest first. until: gives transactions of different jobs time to become visible in
        order."""
        e = t.events.c
        wanted = (e.seq > after, e.kind.in_(kinds), e.at <= until)
        query = EVENT.query.where(*wanted).order_by(e.seq).limit(limit)
        with self._db.read() as c:
            return [EVENT.of(row) for row in c.execute(query)]


def _stand_in(count: int, last: int) -> StoredLine:
    """The line that stands for pruned ones: it has the id of the last of them, so that readers resume after it."""
    text = f"… {count:,} earlier lines of this job were deleted, to stay within the limits of age and size."
    return StoredLine(last, 1, -1, 0, "", "WARNING", text)
