"""All SQL of the project. Every change of a job is a guarded update together with its event, in one transaction."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

import sqlalchemy as sa

from syncnorm.service.jobs.exports.export import submission_id
from syncnorm.service.store import schema as t
from syncnorm.service.store.administration.audit import AuditTable
from syncnorm.service.store.administration.installation import InstallationTable
from syncnorm.service.store.administration.leases import LeaseTable
from syncnorm.service.store.administration.retention import RetentionTable
from syncnorm.service.store.administration.secrets import SecretTable
from syncnorm.service.store.administration.tokens import TokenTable
from syncnorm.service.store.database import Database
from syncnorm.service.store.job_query import sort_value
from syncnorm.service.store.statements import RECONCILER
from syncnorm.service.store.tables.attempts import AttemptTable
from syncnorm.service.store.tables.exports import ExportTable
from syncnorm.service.store.tables.history import HistoryTable
from syncnorm.service.store.tables.idempotency import IdempotencyTable
from syncnorm.service.store.tables.jobs import JobTable
from syncnorm.service.store.tables.outbox import DescriptionTable, RemovalTable, WebhookTable
from syncnorm.service.store.tables.profiles import ProfileTable
from syncnorm.service.store.tables.reports import ReportTable
from syncnorm.service.store.tables.set_aside import SetAsideTable
from syncnorm.service.store.tables.stacks import StackTable
from syncnorm.service.store.tables.studies import StudyTable
from syncnorm.service.store.tables.workload import WorkloadTable
from syncnorm.service.store.values import (
    AddOutcome,
    AuditEntry,
    AuditQuery,
    Changes,
    GrowOutcome,
    Heads,
    JobQuery,
    ListedJob,
    NewJob,
    StoredCheckpoint,
    StoredEvent,
    StoredLine,
    StoredProfile,
    StoredResponse,
    StoredStacks,
    StoredToken,
    VerbResult,
)

__all__ = [
    "RECONCILER",
    "AddOutcome",
    "AuditEntry",
    "AuditQuery",
    "Changes",
    "GrowOutcome",
    "Heads",
    "JobQuery",
    "ListedJob",
    "NewJob",
    "Store",
    "StoredCheckpoint",
    "StoredEvent",
    "StoredLine",
    "StoredProfile",
    "StoredResponse",
    "StoredStacks",
    "StoredToken",
    "VerbResult",
    "sort_value",
]


class Store:
    """The tables of one database, each a part of its own. Hand a consumer the parts that it needs."""

    def __init__(self, database: Database, clock: Callable[[], datetime] | None = None) -> None:
        """clock: for tests; None: the time of the database."""
        self._db = db = database if clock is None else database.timed_by(clock)
        self.now = db.now
        self.idempotency = IdempotencyTable(db)
        self.jobs = JobTable(db, self.idempotency)
        self.workload = WorkloadTable(db)
        self.attempts = AttemptTable(db)
        self.exports = ExportTable(db, self.idempotency)
        self.studies = StudyTable(db, self.jobs, self.idempotency)
        self.reports = ReportTable(db)
        self.stacks = StackTable(db)
        self.profiles = ProfileTable(db)
        self.history = HistoryTable(db)
        self.set_aside = SetAsideTable(db)
        self.descriptions = DescriptionTable(db)
        self.removals = RemovalTable(db)
        self.webhooks = WebhookTable(db)
        self.tokens = TokenTable(db)
        self.secrets = SecretTable(db)
        self.audit = AuditTable(db)
        self.leases = LeaseTable(db)
        self.installation = InstallationTable(db)
        self.retention = RetentionTable(db)

    def unreleased_submissions(self) -> set[str]:
        """Submission ids on Ray that are still needed: of attempts and exports that are not released."""
        a, e = t.attempts.c, t.exports.c
        with self._db.read() as c:
            attempts = set(c.execute(sa.select(a.id).where(a.released_at.is_(None))).scalars())
            rows = c.execute(sa.select(e.job_id, e.number, e.starts).where(e.released_at.is_(None)))
            return attempts | {submission_id(*row) for row in rows}
