"""How much the workers of a job have reported, so that what is kept of it stays bounded."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from syncnorm.service.store import schema as t
from syncnorm.service.store.statements import insert_new


def report_counts(c: sa.Connection, job_id: str) -> sa.Row[int, int, int, int | None]:
    """(log lines, their characters, events, number of the last progress event) of a job."""
    r = t.reported.c
    query = sa.select(r.lines, r.characters, r.events, r.progress_seq).where(r.job_id == job_id)
    if (row := c.execute(query).one_or_none()) is None:
        insert_new(c, t.reported, {"job_id": job_id})
        row = c.execute(query).one()
    return row


def set_report_counts(c: sa.Connection, job_id: str, **values: Any) -> None:
    c.execute(sa.update(t.reported).where(t.reported.c.job_id == job_id).values(**values))


def delete_oldest_lines(c: sa.Connection, job_id: str, most: int) -> int:
    """Remove the oldest log lines of a job; how many."""
    l, r = t.log_lines.c, t.reported.c  # noqa: E741
    oldest = sa.select(l.id, sa.func.length(l.text).label("size")).where(l.job_id == job_id).order_by(l.id)
    part = oldest.limit(most).subquery()
    count, size, last = c.execute(sa.select(sa.func.count(), sa.func.sum(part.c.size), sa.func.max(part.c.id))).one()
    if not count:
        set_report_counts(c, job_id, lines=0, characters=0)
        return 0
    c.execute(sa.delete(t.log_lines).where(l.job_id == job_id, l.id <= last))
    less = {r.lines: r.lines - count, r.characters: r.characters - size, r.pruned: r.pruned + count}
    c.execute(sa.update(t.reported).where(r.job_id == job_id).values({**less, r.pruned_to: last}))
    return int(count)
