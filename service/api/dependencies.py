"""What the endpoints work with, and who is asking."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Annotated, Protocol

from anyio import CapacityLimiter
from fastapi import Depends, Request
from starlette.concurrency import run_in_threadpool

from syncnorm.service.api.audit_trail import AuditTrail
from syncnorm.service.api.auth import Authenticator, Principal, RateLimit, UnauthorizedError, require
from syncnorm.service.api.change_notifier import ChangeNotifier
from syncnorm.service.api.http.errors import not_found
from syncnorm.service.api.report_limits import ReportLimits
from syncnorm.service.api.submit_batcher import SubmitBatcher
from syncnorm.service.background.retention_loop import Retention
from syncnorm.service.integrations.mlflow_runs import Tracker
from syncnorm.service.integrations.secrets import Secrets
from syncnorm.service.integrations.webhooks import Webhooks
from syncnorm.service.jobs.job import Job
from syncnorm.service.jobs.study import Study
from syncnorm.service.reconciler.reconciler import Reconciler
from syncnorm.service.settings import Settings
from syncnorm.service.storage.code_packages import CodePackages
from syncnorm.service.store import Store
from syncnorm.service.studies.publisher import StudyPublisher
from syncnorm.service.telemetry.metrics import Metrics
from syncnorm.trainer.contract.plan import Inspection
from syncnorm.trainer.contract.spec import JobSpec

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""Whatever else is asked for is there under no id; a database may refuse even to look for it."""
_REPORTS = 2
"""Messages with log lines that are stored at the same time: however many come, threads are left for everybody else."""
_LISTS = 2
"""Lists made at the same time; the others wait in line. More threads would take the interpreter from each other."""


class Background(Protocol):
    """A loop beside the reconciler, which nothing else waits for."""

    name: str

    def run(self, stop: threading.Event) -> None: ...


@dataclass(frozen=True)
class Context:
    """mlflow_uri: for links, as a browser reaches it. local_paths: workers see the same files as this process.

    inspect: asks somebody who knows torch about a spec; None where nobody answers.
    """

    settings: Settings
    store: Store
    reconciler: Reconciler
    tracker: Tracker
    notifier: ChangeNotifier
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
    secrets: Secrets
    webhooks: Webhooks
    studies: StudyPublisher
    retention: Retention
    background: tuple[Background, ...] = ()
    limits: ReportLimits = field(default_factory=ReportLimits)
    reports: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(_REPORTS))
    lists: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(_LISTS))

    def changed(self, job_id: str) -> None:
        """Something about the job was written: look at it soon, and tell its followers."""
        self.wake.set()
        self.notifier.changed(job_id)


async def get_context(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


Ctx = Annotated[Context, Depends(get_context)]


async def _authorize(request: Request, scope: str) -> Principal:
    """Raises: ApiError 401 without a valid token, 429 when it asks too often, 403 without the scope."""
    ctx: Context = request.app.state.context
    authorization = request.headers.get("authorization", "")
    principal = ctx.authenticator.cached(authorization)
    if principal is None:
        try:
            principal = await run_in_threadpool(ctx.authenticator.authenticate, authorization)
        except UnauthorizedError as error:
            request.state.denied = error
            raise
    principal = replace(principal, request_id=request.state.request_id)
    request.state.principal = principal
    ctx.rate.take(principal.name)
    return require(principal, scope)


# One function each that asks for nothing but the request: every further dependency costs FastAPI 0.05 ms a request.
async def _reader(request: Request) -> Principal:
    return await _authorize(request, "read")


async def _submitter(request: Request) -> Principal:
    return await _authorize(request, "submit")


async def _admin(request: Request) -> Principal:
    return await _authorize(request, "admin")


SCOPE_OF = {_reader: "read", _submitter: "submit", _admin: "admin"}
"""What a token needs for an operation that depends on each of them."""
Reader = Annotated[Principal, Depends(_reader)]
Submitter = Annotated[Principal, Depends(_submitter)]
Admin = Annotated[Principal, Depends(_admin)]


def visible_job(ctx: Context, who: Principal, job_id: str) -> Job:
    """Raises: ApiError 404, the same for a job that is not there and for one of somebody else."""
    job = ctx.store.jobs.get(job_id) if _ID.fullmatch(job_id) else None
    if job is None or not who.may_see(job):
        raise not_found("job", job_id)
    return job


def visible_study(ctx: Context, who: Principal, study_id: str) -> Study:
    """Raises: ApiError 404, the same for a study that is not there and for one of somebody else."""
    study = ctx.store.studies.get(study_id) if _ID.fullmatch(study_id) else None
    if study is None or not who.may_see(study):
        raise not_found("study", study_id)
    return study
