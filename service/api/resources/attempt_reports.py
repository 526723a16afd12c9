"""Endpoints for the reports of an attempt's workers. See trainer/contract/protocol.py for the messages."""

from __future__ import annotations

import asyncio
import hmac
import re
import threading
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Depends, Header, Path
from starlette.concurrency import run_in_threadpool

from syncnorm.service.api.change_notifier import ChangeNotifier
from syncnorm.service.api.components import Components
from syncnorm.service.api.dependencies import provide
from syncnorm.service.api.http.errors import ApiError
from syncnorm.service.api.report_limits import ReportLimits
from syncnorm.service.integrations.secrets import Secrets
from syncnorm.service.jobs.actors import WORKER
from syncnorm.service.jobs.exports.export import ExportState
from syncnorm.service.jobs.job import Attempt, Job, NewEvent
from syncnorm.service.reconciler.backends import attempt_token
from syncnorm.service.store.tables.attempts import AttemptTable
from syncnorm.service.store.tables.exports import ExportTable
from syncnorm.service.store.tables.jobs import JobTable
from syncnorm.service.store.tables.reports import ReportTable
from syncnorm.service.store.tables.stacks import StackTable
from syncnorm.trainer.contract import protocol
from syncnorm.trainer.contract.bounds import LONGEST_S, MOST_METRICS

AttemptId = Annotated[str, Path(max_length=64, pattern=r"^[A-Za-z0-9_-]+$")]
JobId = Annotated[str, Path(max_length=40, pattern=r"^[A-Za-z0-9_]+$")]
ExportName = Annotated[str, Path(max_length=9, pattern=r"^[0-9]+$")]
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9_.-]")
_MOST_OF_A_NAME = 50
router = APIRouter(prefix="/internal/v1/attempts/{attempt_id}", include_in_schema=False)
router_of_exports = APIRouter(prefix="/internal/v1/exports/{job_id}/{name}", include_in_schema=False)
Bearer = Annotated[str, Header()]


@dataclass(frozen=True)
class _Reports:
    """lease_s: how long an attempt lives after a report. limiter: of threads that store log lines."""

    table: ReportTable
    attempts: AttemptTable
    jobs: JobTable
    exports: ExportTable
    secrets: Secrets
    stacks: StackTable
    limits: ReportLimits
    limiter: CapacityLimiter
    wake: threading.Event
    notifier: ChangeNotifier
    requests: ChangeNotifier
    lease_s: float
    log_mb_per_job: int


def _reports(parts: Components) -> _Reports:
    store, settings = parts.store, parts.settings
    return _Reports(
        store.reports,
        store.attempts,
        store.jobs,
        store.exports,
        parts.secrets,
        store.stacks,
        parts.limits,
        parts.reports,
        parts.wake,
        parts.notifier,
        parts.requests,
        settings.lease_s,
        settings.log_mb_per_job,
    )


Reports = Annotated[_Reports, Depends(provide(_reports))]


@router.post("/heartbeat")
def heartbeat(
    attempt_id: AttemptId, message: protocol.Heartbeat, reports: Reports, authorization: Bearer = ""
) -> protocol.Reply:
    _authenticate(reports, message.fence, authorization, "heartbeat")
    # Every rank renews the lease and counts steps; the phase comes from the driver and rank 0.
    phase = message.phase if message.source in ("driver", "rank-0") else None
    return _reply(
        reports,
        reports.table.heartbeat(attempt_id, message.fence, reports.lease_s, phase, message.step),
        new_phase=phase,
    )


@router.post("/progress")
def progress(
    attempt_id: AttemptId, message: protocol.Progress, reports: Reports, authorization: Bearer = ""
) -> protocol.Reply:
    _authenticate(reports, message.fence, authorization, "progress")
    attempt = reports.attempts.get(attempt_id)
    job = reports.jobs.get(attempt.job_id) if attempt else None
    if attempt is None or job is None:
        raise _stale_fence(attempt_id)
    value = progress_of(job, attempt, message, datetime.now(UTC))
    return _reply(reports, reports.table.progress(attempt_id, message.fence, reports.lease_s, message.step, value))


@router.post("/logs")
async def logs(
    attempt_id: AttemptId, message: protocol.LogLines, reports: Reports, authorization: Bearer = ""
) -> protocol.Reply:
    _authenticate(reports, message.fence, authorization, "logs")
    return await to_thread.run_sync(_keep_lines, attempt_id, message, reports, limiter=reports.limiter)


def _keep_lines(attempt_id: str, message: protocol.LogLines, reports: _Reports) -> protocol.Reply:
    lines = reports.limits.lines(message.fence, message.lines)
    most = reports.log_mb_per_job * 2**20
    return _reply(reports, reports.table.add_lines(attempt_id, message.fence, lines, most))


@router.post("/checkpoints")
def checkpoints(
    attempt_id: AttemptId, message: protocol.CheckpointFact, reports: Reports, authorization: Bearer = ""
) -> protocol.Reply:
    _authenticate(reports, message.fence, authorization, "checkpoints")
    return _reply(reports, reports.table.add_checkpoint(attempt_id, message))


@router.post("/placement")
def placement(
    attempt_id: AttemptId, message: protocol.Placement, reports: Reports, authorization: Bearer = ""
) -> protocol.Reply:
    _authenticate(reports, message.fence, authorization, "placement")
    return _reply(reports, reports.table.placement(attempt_id, message))


@router.post("/guarantees")
def guarantees(
    attempt_id: AttemptId, message: protocol.GuaranteesReport, reports: Reports, authorization: Bearer = ""
) -> protocol.Reply:
    _authenticate(reports, message.fence, authorization, "guarantees")
    return _reply(reports, reports.table.guarantees(attempt_id, message))


@router.post("/events")
def events(
    attempt_id: AttemptId, message: protocol.Event, reports: Reports, authorization: Bearer = ""
) -> protocol.Reply:
    _authenticate(reports, message.fence, authorization, "events")
    if not reports.limits.event(message.fence):
        detail = "The workers of an attempt may send 50 events a second; try again in 1 s."
        raise ApiError(429, "rate_limited", detail, headers={"Retry-After": "1"})
    event = NewEvent(_kind_of(message), message.message, message.data, WORKER)
    return _reply(reports, reports.table.add_event(attempt_id, message.fence, event))


def _kind_of(message: protocol.Event) -> str:
    """Kinds that syncnorm's workers do not send are prefixed with `user.`."""
    if message.kind in protocol.WORKER_EVENTS:
        return message.kind
    return f"user.{_NOT_IN_A_NAME.sub('_', message.kind)[:_MOST_OF_A_NAME]}"


@router.post("/stacks")
def stacks(
    attempt_id: AttemptId, message: protocol.Stacks, reports: Reports, authorization: Bearer = ""
) -> protocol.Reply:
    _authenticate(reports, message.fence, authorization, "stacks")
    return _reply(reports, reports.table.add_stacks(attempt_id, message))


@router.post("/stacks/request")
def request_stacks(
    attempt_id: AttemptId, message: protocol.StacksWanted, reports: Reports, authorization: Bearer = ""
) -> protocol.Reply:
    """A rank that waits in vain for another one asks what all of them do."""
    _authenticate(reports, message.fence, authorization, "stacks/request")
    attempt = _live(reports, attempt_id, message.fence)
    reports.stacks.request(attempt, WORKER)
    reports.requests.changed(attempt.job_id)
    return _reply(reports, reports.jobs.get(attempt.job_id))


@router.post("/profile")
def profile(
    attempt_id: AttemptId, message: protocol.Profile, reports: Reports, authorization: Bearer = ""
) -> protocol.Reply:
    _authenticate(reports, message.fence, authorization, "profile")
    return _reply(reports, reports.table.add_profile(attempt_id, message))


@router.post("/requests")
async def watch_requests(
    attempt_id: AttemptId, message: protocol.RequestWatch, reports: Reports, authorization: Bearer = ""
) -> protocol.Requests:
    """Answered once something is asked of the processes of the attempt, or after a while."""
    _authenticate(reports, message.fence, authorization, "requests")
    job_id = (await run_in_threadpool(_live, reports, attempt_id, message.fence)).job_id
    clock = asyncio.get_running_loop().time
    until = clock() + message.wait_s
    with reports.requests.following(job_id) as asked:
        while not reports.requests.is_closed:
            asked.clear()
            found = await run_in_threadpool(reports.stacks.requests_of, job_id, message.known)
            if found.newest != message.known or clock() >= until:
                return found
            with suppress(TimeoutError):
                await asyncio.wait_for(asked.wait(), until - clock())
    raise ApiError(503, "unavailable", "The service is shutting down; try again in 5 s.", headers={"Retry-After": "5"})


@router.post("/exit")
def leave(
    attempt_id: AttemptId, message: protocol.Exit, reports: Reports, authorization: Bearer = ""
) -> protocol.Reply:
    _check(message.fence, authorization)
    if message.result.fence != message.fence:
        raise _stale_fence(attempt_id)
    result = message.result.model_dump(mode="json")
    return _reply(reports, reports.table.exit(attempt_id, message.fence, result), new_phase="done")


@router.post("/secrets")
def secrets(
    attempt_id: AttemptId, message: protocol.SecretsRequest, reports: Reports, authorization: Bearer = ""
) -> protocol.SecretValues:
    """The secrets that the spec of the job names, for the ranks of its live attempt only."""
    _check(message.fence, authorization)
    job = reports.jobs.get(_live(reports, attempt_id, message.fence).job_id)
    if job is None:
        raise _stale_fence(attempt_id)
    return _named_secrets(reports, job)


def _live(reports: _Reports, attempt_id: str, fence: str) -> Attempt:
    attempt = reports.attempts.get(attempt_id)
    if attempt is None or attempt.ended_at is not None or attempt.fence != fence:
        raise _stale_fence(attempt_id)
    return attempt


@router_of_exports.post("/secrets")
def secrets_of_export(
    job_id: JobId, name: ExportName, message: protocol.SecretsRequest, reports: Reports, authorization: Bearer = ""
) -> protocol.SecretValues:
    """The same for a later export, which reads the job's data again."""
    return _named_secrets(reports, _running_export(reports, job_id, name, message.fence, authorization))


@router_of_exports.post("/heartbeat")
def heartbeat_of_export(
    job_id: JobId, name: ExportName, message: protocol.Heartbeat, reports: Reports, authorization: Bearer = ""
) -> protocol.Reply:
    """Whether this start of the export is current: asked before it registers a model. It renews no lease."""
    _running_export(reports, job_id, name, message.fence, authorization)
    return protocol.Reply()


def _running_export(reports: _Reports, job_id: str, name: str, fence: str, authorization: str) -> Job:
    """The job of an export whose latest start has this fence."""
    _check(fence, authorization)
    export, job = reports.exports.get(job_id, name), reports.jobs.get(job_id)
    if export is None or job is None or export.state is not ExportState.RUNNING or export.fence != fence:
        raise ApiError(409, "stale_fence", f"Export {name} of {job_id} has ended or was started again.")
    return job


def _named_secrets(reports: _Reports, job: Job) -> protocol.SecretValues:
    named = job.spec.secrets
    found = reports.secrets.values(job.owner, set(named.values()))
    return protocol.SecretValues(values={variable: found[name] for variable, name in named.items() if name in found})


def _authenticate(reports: _Reports, fence: str, authorization: str, path: str) -> None:
    """Raises: ApiError 401 for another's token, 429 for messages that come too fast."""
    _check(fence, authorization)
    reports.limits.message(fence, path)


def _check(fence: str, authorization: str) -> None:
    if not hmac.compare_digest(authorization.encode(), f"Bearer {attempt_token(fence)}".encode()):
        raise ApiError(401, "unauthorized", "This is not the token of this attempt.")


def _reply(reports: _Reports, job: Job | None, new_phase: str | None = None) -> protocol.Reply:
    if job is None:
        raise _stale_fence("this one")
    if new_phase is not None:
        reports.wake.set()
    reports.notifier.changed(job.id)
    return protocol.Reply(stop=job.stop, lease_s=reports.lease_s)


def _stale_fence(attempt_id: str) -> ApiError:
    return ApiError(
        409, "stale_fence", f"Attempt {attempt_id} has ended or was superseded. Stop, and write nothing more."
    )


def progress_of(job: Job, attempt: Attempt, message: protocol.Progress, now: datetime) -> dict[str, Any]:
    """Progress as the API shows it, with an estimate from the speed of this attempt's steps."""
    eta_s = percent = None
    if message.steps:
        percent = min(100.0, round(100 * message.step / message.steps, 2))
        began = (attempt.phases or {}).get("training")
        done = message.step - attempt.resume_step
        if began and done > 0:
            elapsed_s = max(0.0, (now - datetime.fromisoformat(began)).total_seconds())
            eta_s = round(min(LONGEST_S, max(0.0, elapsed_s / done * (message.steps - message.step))), 1)
    reported = message.model_dump(mode="json", exclude={"fence"})
    metrics = {**(job.progress or {}).get("metrics", {}), **reported["metrics"]}
    return {**reported, "metrics": dict(list(metrics.items())[-MOST_METRICS:]), "percent": percent, "eta_s": eta_s}
