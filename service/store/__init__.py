"""All SQL of the project. Every change of a job is a guarded update together with its event, in one transaction."""

from __future__ import annotations

import sqlalchemy as sa

from syncnorm.service.jobs.export import submission_id
from syncnorm.service.port_errors import DatabaseUnavailableError
from syncnorm.service.store import schema as t
from syncnorm.service.store.base import RECONCILER
from syncnorm.service.store.job_query import sort_value
from syncnorm.service.store.tables.access import AccessTable
from syncnorm.service.store.tables.attempts import AttemptTable
from syncnorm.service.store.tables.exports import ExportTable
from syncnorm.service.store.tables.history import History
from syncnorm.service.store.tables.installation import InstallationTable
from syncnorm.service.store.tables.leases import LeaseTable
from syncnorm.service.store.tables.removals import RemovalTable
from syncnorm.service.store.tables.reports import ReportTable
from syncnorm.service.store.tables.retention import RetentionTable
from syncnorm.service.store.tables.secrets import SecretTable
from syncnorm.service.store.tables.set_aside import SetAsideTable
from syncnorm.service.store.tables.studies import StudyTable
from syncnorm.service.store.values import (
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
