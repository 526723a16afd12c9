"""What the server is made of. `app.state.context` holds it; each resource picks what it needs, see `dependencies`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from anyio import CapacityLimiter

from syncnorm.service.api.audit_trail import AuditTrail
from syncnorm.service.api.auth import Authenticator, RateLimit
from syncnorm.service.api.change_notifier import ChangeNotifier
from syncnorm.service.api.report_limits import ReportLimits
from syncnorm.service.api.submit_batcher import SubmitBatcher
from syncnorm.service.background.loop import Loop
from syncnorm.service.background.retention_loop import Retention
from syncnorm.service.integrations.mlflow_runs import Tracker
from syncnorm.service.integrations.secrets import Secrets
from syncnorm.service.integrations.webhooks import Webhooks
from syncnorm.service.jobs.admission import AdmissionChecks
from syncnorm.service.reconciler.reconciler import Reconciler
from syncnorm.service.settings import Settings
from syncnorm.service.storage.code_packages import CodePackages
from syncnorm.service.storage.job_files import JobFiles
from syncnorm.service.storage.weight_sources import WeightSources
from syncnorm.service.store import Store
from syncnorm.service.studies.publisher import StudyPublisher
from syncnorm.service.telemetry.metrics import Metrics
from syncnorm.trainer.contract.plan import Inspection
from syncnorm.trainer.contract.spec import JobSpec

_REPORTS = 2
"""Messages with log lines that are stored concurrently: however many come, threads are left for other requests."""
_STREAMS = 2
"""Parts of streams that are read concurrently, for the same reason: any number may follow a job."""
_DOWNLOADS = 4
"""Pieces of files that are read concurrently: slow storages leave threads for other requests."""
_LISTS = 2
"""Lists that are made concurrently; others wait. More threads would compete for the interpreter."""


class Background(Protocol):
    """Background loops that nothing else waits for."""

    def loops(self) -> Sequence[Loop]: ...


@dataclass(frozen=True)
class JobChanges:
    """Where it is said that something about a job was written: look at it soon, and tell its followers."""

    wake: threading.Event
    notifier: ChangeNotifier

    def __call__(self, job_id: str) -> None:
        self.wake.set()
        self.notifier.changed(job_id)


@dataclass(frozen=True)
class Components:
    """mlflow_uri: for links, as a browser reaches it. local_paths: workers see the same files as this process.

    inspect: builds the model of a spec in a process with torch; None if that is not possible. requests: wakes
    processes of jobs when something is asked of them.
    """

    settings: Settings
    store: Store
    reconciler: Reconciler
    tracker: Tracker
    notifier: ChangeNotifier
    requests: ChangeNotifier
    wake: threading.Event
    mlflow_uri: str
    local_paths: bool
    authenticator: Authenticator
    rate: RateLimit
    metrics: Metrics
    audit_trail: AuditTrail
    inspect: Callable[[JobSpec], Inspection | None]
    submits: SubmitBatcher
    packages: CodePackages
    files: JobFiles
    secrets: Secrets
    webhooks: Webhooks
    studies: StudyPublisher
    retention: Retention
    background: tuple[Background, ...] = ()
    limits: ReportLimits = field(default_factory=ReportLimits)
    reports: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(_REPORTS))
    streams: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(_STREAMS))
    downloads: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(_DOWNLOADS))
    lists: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(_LISTS))

    def end_followers(self) -> None:
        """Answer the requests that wait for news, because the server stops."""
        self.notifier.close()
        self.requests.close()

    @property
    def job_changes(self) -> JobChanges:
        return JobChanges(self.wake, self.notifier)

    @property
    def admission_checks(self) -> AdmissionChecks:
        return AdmissionChecks(
            lambda: self.reconciler.capacity,
            self.local_paths,
            self.packages.has,
            self.secrets.missing,
            self.packages.read_text,
            self.settings.allow_code,
            self.settings.allow_requirements,
            self.settings.data_urls,
            WeightSources(self.store, self.settings.weights, self.local_paths, self.tracker.model_tags).resolve,
        )
