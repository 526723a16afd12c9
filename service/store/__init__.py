"""All SQL of the project. Every change of a job is a guarded update together with its event, in one transaction."""

from __future__ import annotations

import sqlalchemy as sa

from service import schema as t
from service.exports import submission_id
from service.port_errors import DatabaseUnavailableError
from service.store.access import AccessTable
from service.store.attempts import AttemptTable
from service.store.base import RECONCILER
from service.store.exports import ExportTable
from service.store.history import History
from service.store.installation import InstallationTable
from service.store.leases import LeaseTable
from service.store.listing import sort_value
from service.store.removals import RemovalTable
from service.store.reports import ReportTable
from service.store.retention import RetentionTable
from service.store.secrets import SecretTable
from service.store.set_aside import SetAsideTable
from service.store.studies import StudyTable
from service.store.values import (
    Added,
    Answer,
    Asked,
    AuditEntry,
    AuditQuery,
    Heads,
    JobQuery,
    Listed,
    NewJob,
    News,
    StoredCheckpoint,
    StoredEvent,
    StoredLine,
    StoredToken,
)

__all__ = [
    "RECONCILER",
    "Added",
    "Answer",
    "Asked",
    "AuditEntry",
    "AuditQuery",
    "Heads",
    "JobQuery",
    "Listed",
    "NewJob",
    "News",
    "Store",
    "StoredCheckpoint",
    "StoredEvent",
    "StoredLine",
    "StoredToken",
    "sort_value",
]


class Store(
    StudyTable,
    ExportTable,
    AttemptTable,
    SetAsideTable,
    ReportTable,
    History,
    RetentionTable,
    AccessTable,
    SecretTable,
    RemovalTable,
    LeaseTable,
    InstallationTable,
):
    """Jobs, attempts, exports, studies, events, logs and checkpoints in one database."""

    def is_answering(self) -> bool:
        try:
            with self._db.read() as c:
                c.execute(sa.select(sa.literal(1)))
        except (sa.exc.SQLAlchemyError, DatabaseUnavailableError):
            return False
        return True

    def unreleased_submissions(self) -> set[str]:
        """Names under which Ray may know something that we still need: of attempts and exports not released yet."""
        a, e = t.attempts.c, t.exports.c
        with self._db.read() as c:
            attempts = set(c.execute(sa.select(a.id).where(a.released_at.is_(None))).scalars())
            rows = c.execute(sa.select(e.job_id, e.number, e.starts).where(e.released_at.is_(None)))
            return attempts | {submission_id(*row) for row in rows}
