"""Deleted jobs whose files still lie on the storage: written down with the deletion, so that none is forgotten."""

from __future__ import annotations

import sqlalchemy as sa

from syncnorm.service.store import schema as t
from syncnorm.service.store.base import Tables


class RemovalTable(Tables):
    """What the reconciler has yet to take off the storage."""

    def removals(self, limit: int) -> list[str]:
        """Ids of deleted jobs, oldest first."""
        r = t.removals.c
        with self._db.read() as c:
            return list(c.execute(sa.select(r.job_id).order_by(r.deleted_at, r.job_id).limit(limit)).scalars())

    def note_removed(self, job_id: str) -> None:
        """Nothing of the job is on the storage any more."""
        with self._db.write() as c:
            c.execute(sa.delete(t.removals).where(t.removals.c.job_id == job_id))
