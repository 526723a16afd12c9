"""Later exports in the database. Every change is a guarded update together with its event, in one transaction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa

from syncnorm.service.jobs.actors import SERVICE, Actor, Deed
from syncnorm.service.jobs.export import OVER, Export, ExportState
from syncnorm.service.jobs.job import Job, NewEvent
from syncnorm.service.store import schema as t
from syncnorm.service.store.rows import EXPORT, Faults, export_of
from syncnorm.service.store.tables.jobs import JobTable
from syncnorm.service.store.values import Added, Answer


class ExportTable(JobTable):
    """Later exports of succeeded jobs."""

    def add_export(
        self,
        job: Job,
        section: Mapping[str, Any],
        describe: Callable[[Export], Answer],
        key: tuple[str, str] | None = None,
        most_unfinished: int | None = None,
        by: Actor = SERVICE,
    ) -> Answer | Export | Added | None:
        """Store the wish for one more export; otherwise nothing is stored: the answer given before under its key, too
        many, or None for a job that was deleted meanwhile.

        describe: what to answer when the same key comes again. key: (who asks, Idempotency-Key).
        most_unfinished: exports of the jobs of one owner.
        """
        e = t.exports.c
        with self._db.write() as c:
            self._lock_job(c, t.jobs.c.id == job.id)
            if c.execute(sa.select(t.jobs.c.id).where(t.jobs.c.id == job.id)).first() is None:
                return None
            last = c.execute(sa.select(sa.func.max(e.number)).where(e.job_id == job.id)).scalar() or 1
            export = Export(job.id, last + 1, dict(section), ExportState.QUEUED, self._now(c))
            if key is not None and (before := self._answer(c, *key)) is not None:
                return before
            if most_unfinished is not None and self._unfinished_exports(c, job.owner) >= most_unfinished:
                return Added.TOO_MANY
            if key is not None:
                row = {"owner": key[0], "key": key[1], "at": export.created_at, **vars(describe(export))}
                if not self._insert_new(c, t.idempotency, row):  # somebody was faster, with another job
                    return self._answer(c, *key)
            c.execute(sa.insert(t.exports).values(**vars(export)))
            about = {"export": export.name, **section}
            self._add_event(c, job.id, NewEvent("export_queued", f"Export {export.name} was asked for.", about, by))
            self._audit(c, [Deed(by, "job.export", job.id, after=about)])
        return export

    def _unfinished_exports(self, c: sa.Connection, owner: str) -> int:
        e, j = t.exports.c, t.jobs.c
        mine = sa.select(sa.func.count()).join_from(t.exports, t.jobs, e.job_id == j.id)
        return int(c.execute(mine.where(j.owner == owner, e.state.not_in(OVER))).scalar_one())

    def exports(self, job_id: str) -> list[Export]:
        """In the order in which they were asked for."""
        e = t.exports.c
        return self._exports(EXPORT.query.where(e.job_id == job_id).order_by(e.number))

    def unreleased_exports(self, faults: Faults | None = None) -> list[Export]:
        """Those with something left to do."""
        return self._exports(EXPORT.query.where(t.exports.c.released_at.is_(None)), faults)

    def export(self, job_id: str, name: str) -> Export | None:
        return next((export for export in self.exports(job_id) if export.name == name), None)

    def change_export(
        self, export: Export, changes: Mapping[str, Any], *, event: NewEvent | None = None, lease: int | None = None
    ) -> Export | None:
        """Change an export if it still is as it was read; None: nothing changed.

        lease: token of the reconciler's lease, which must still stand.
        """
        e = t.exports.c
        guard = (e.job_id == export.job_id, e.number == export.number, e.version == export.version)
        with self._db.write() as c:
            if lease is not None and not self._lease_stands(c, lease):
                return None
            self._lock_job(c, t.jobs.c.id == export.job_id)
            values = {**changes, "version": export.version + 1}
            if c.execute(sa.update(t.exports).where(*guard).values(**values)).rowcount != 1:
                return None
            if event is not None:
                self._add_event(c, export.job_id, event)
            key = (e.job_id == export.job_id, e.number == export.number)
            return export_of(c.execute(EXPORT.query.where(*key)).one())

    def _exports(self, query: sa.Select[Any], faults: Faults | None = None) -> list[Export]:
        with self._db.read() as c:
            return [export_of(row, faults) for row in c.execute(query)]
