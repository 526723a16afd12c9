"""Later exports in the database. Every change is a guarded update together with its event, in one transaction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa

from syncnorm.service.jobs.actors import SERVICE, Actor, NewAuditEntry
from syncnorm.service.jobs.exports.export import OVER, Export, ExportState, after_export
from syncnorm.service.jobs.job import Job, NewEvent
from syncnorm.service.store import schema as t
from syncnorm.service.store.database import Database
from syncnorm.service.store.rows import EXPORT, Faults, export_of
from syncnorm.service.store.statements import add_audit, add_event, lease_stands, lock_job
from syncnorm.service.store.tables.idempotency import IdempotencyTable
from syncnorm.service.store.values import AddOutcome, StoredResponse


def note_on_job(c: sa.Connection, export: Export) -> None:
    """Note on the job how this export stands, if it stands in for one that gave no certified model."""
    j = t.jobs.c
    stored, version = c.execute(sa.select(j.export, j.version).where(j.id == export.job_id)).one()
    after = after_export(stored if isinstance(stored, dict) else None, export)
    if after is None:
        return
    model = {"model": export.model} if export.state is ExportState.SUCCEEDED else {}
    c.execute(sa.update(t.jobs).where(j.id == export.job_id).values(export=after, version=version + 1, **model))


class ExportTable:
    """Later exports of succeeded jobs."""

    def __init__(self, database: Database, idempotency: IdempotencyTable) -> None:
        self._db = database
        self._idempotency = idempotency

    def add(
        self,
        job: Job,
        section: Mapping[str, Any],
        describe: Callable[[Export], StoredResponse],
        key: tuple[str, str] | None = None,
        most_unfinished: int | None = None,
        by: Actor = SERVICE,
    ) -> StoredResponse | Export | AddOutcome | None:
        """Store the request for a later export.

        If nothing is stored, returns why: the earlier answer under its key, too many, or None for a job that was
        deleted meanwhile. describe: makes the answer that is stored with the key. key: (owner, Idempotency-Key).
        most_unfinished: limit for each owner.
        """
        e = t.exports.c
        with self._db.write() as c:
            lock_job(c, t.jobs.c.id == job.id)
            if c.execute(sa.select(t.jobs.c.id).where(t.jobs.c.id == job.id)).first() is None:
                return None
            last = c.execute(sa.select(sa.func.max(e.number)).where(e.job_id == job.id)).scalar() or 1
            now = self._db.now(c)
            export = Export(job.id, last + 1, dict(section), ExportState.QUEUED, now)
            if key is not None and (before := self._idempotency.find(c, *key)) is not None:
                return before
            if most_unfinished is not None and self._unfinished_exports(c, job.owner) >= most_unfinished:
                return AddOutcome.TOO_MANY
            if key is not None and (before := self._idempotency.take(c, *key, now, describe(export))) is not None:
                return before  # another request was faster, with another job
            c.execute(sa.insert(t.exports).values(**vars(export)))
            note_on_job(c, export)
            about = {"export": export.name, **section}
            add_event(c, job.id, now, NewEvent("export_queued", f"Export {export.name} was requested.", about, by))
            add_audit(c, now, [NewAuditEntry(by, "job.export", job.id, after=about)])
        return export

    def _unfinished_exports(self, c: sa.Connection, owner: str) -> int:
        e, j = t.exports.c, t.jobs.c
        mine = sa.select(sa.func.count()).join_from(t.exports, t.jobs, e.job_id == j.id)
        return int(c.execute(mine.where(j.owner == owner, e.state.not_in(OVER))).scalar_one())

    def of_job(self, job_id: str) -> list[Export]:
        """All exports of a job, in the order in which they were requested."""
        e = t.exports.c
        return self._exports(EXPORT.query.where(e.job_id == job_id).order_by(e.number))

    def unreleased(self, faults: Faults | None = None) -> list[Export]:
        """Exports that are not released yet."""
        return self._exports(EXPORT.query.where(t.exports.c.released_at.is_(None)), faults)

    def get(self, job_id: str, name: str) -> Export | None:
        return next((export for export in self.of_job(job_id) if export.name == name), None)

    def change(
        self, export: Export, changes: Mapping[str, Any], *, event: NewEvent | None = None, lease: int | None = None
    ) -> Export | None:
        """Change an export if it has not changed since it was read; None: nothing changed.

        lease: token of the reconciler's lease, which must still be valid.
        """
        e = t.exports.c
        guard = (e.job_id == export.job_id, e.number == export.number, e.version == export.version)
        with self._db.write() as c:
            if not lease_stands(c, lease):
                return None
            lock_job(c, t.jobs.c.id == export.job_id)
            values = {**changes, "version": export.version + 1}
            if c.execute(sa.update(t.exports).where(*guard).values(**values)).rowcount != 1:
                return None
            if event is not None:
                add_event(c, export.job_id, self._db.now(c), event)
            key = (e.job_id == export.job_id, e.number == export.number)
            after = export_of(c.execute(EXPORT.query.where(*key)).one())
            if after.state is not export.state:
                note_on_job(c, after)
            return after

    def _exports(self, query: sa.Select[Any], faults: Faults | None = None) -> list[Export]:
        with self._db.read() as c:
            return [export_of(row, faults) for row in c.execute(query)]
