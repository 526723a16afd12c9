"""The audit trail: who did what to which object."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from syncnorm.service.jobs.actors import NewAuditEntry
from syncnorm.service.store import schema as t
from syncnorm.service.store.database import Database
from syncnorm.service.store.record_rows import AUDIT
from syncnorm.service.store.statements import add_audit
from syncnorm.service.store.values import AuditEntry, AuditQuery


class AuditTable:
    """Only ever added to, until its entries are too old."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def add(self, entries: Sequence[NewAuditEntry]) -> None:
        """Audit entries without a transaction of their own: refusals, and stored files."""
        with self._db.write() as c:
            add_audit(c, self._db.now(c), entries)

    def find(self, query: AuditQuery = AuditQuery()) -> list[AuditEntry]:  # noqa: B008
        """Newest first."""
        a = t.audit.c
        wanted = []
        if query.actor is not None:
            wanted.append(sa.or_(a.owner == query.actor, a.token_id == query.actor))
        if query.action is not None:
            wanted.append(sa.or_(a.action == query.action, a.action.startswith(f"{query.action}.", autoescape=True)))
        if query.object is not None:
            wanted.append(a.object == query.object)
        if query.since is not None:
            wanted.append(a.at >= query.since)
        if query.until is not None:
            wanted.append(a.at < query.until)
        if query.before is not None:
            wanted.append(a.seq < query.before)
        with self._db.read() as c:
            rows = c.execute(AUDIT.query.where(*wanted).order_by(a.seq.desc()).limit(query.limit))
            return [AUDIT.of(row) for row in rows]
