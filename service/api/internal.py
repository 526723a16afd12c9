"""What the workers of an attempt report. See trainer/attempt.py for the messages."""

from __future__ import annotations

import hmac
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Header

from service.api.context import Context, Ctx
from service.errors import ApiError
from service.exports import ExportState
from service.jobs import Attempt, Job, NewEvent
from service.steps.ports import attempt_token
from trainer import attempt as protocol

router = APIRouter(prefix="/internal/v1/attempts/{attempt_id}", include_in_schema=False)
router_of_exports = APIRouter(prefix="/internal/v1/exports/{job_id}/{name}", include_in_schema=False)
Bearer = Annotated[str, Header()]


@router.post("/heartbeat")
def heartbeat(attempt_id: str, message: protocol.Heartbeat, ctx: Ctx, authorization: Bearer = "") -> protocol.Reply:
    _check(message.fence, authorization)
    # Ranks renew the lease and count steps; the phase is what the driver and rank 0 say.
    phase = message.phase if message.source in ("driver", "rank-0") else None
    return _reply(
        ctx, ctx.store.heard(attempt_id, message.fence, ctx.settings.lease_s, phase, message.step), new_phase=phase
    )


@router.post("/progress")
def progress(attempt_id: str, message: protocol.Progress, ctx: Ctx, authorization: Bearer = "") -> protocol.Reply:
    _check(message.fence, authorization)
    attempt = ctx.store.attempt(attempt_id)
    job = ctx.store.job(attempt.job_id) if attempt else None
    if attempt is None or job is None:
        raise _stale(attempt_id)
    value = progress_of(job, attempt, message, datetime.now(UTC))
    return _reply(ctx, ctx.store.progress(attempt_id, message.fence, ctx.settings.lease_s, message.step, value))


@router.post("/logs")
def logs(attempt_id: str, message: protocol.LogLines, ctx: Ctx, authorization: Bearer = "") -> protocol.Reply:
    _check(message.fence, authorization)
    return _reply(ctx, ctx.store.add_lines(attempt_id, message.fence, message.lines))


@router.post("/checkpoints")
def checkpoints(
    attempt_id: str, message: protocol.CheckpointFact, ctx: Ctx, authorization: Bearer = ""
) -> protocol.Reply:
    _check(message.fence, authorization)
    return _reply(ctx, ctx.store.add_checkpoint(attempt_id, message))


@router.post("/placement")
def placement(attempt_id: str, message: protocol.Placement, ctx: Ctx, authorization: Bearer = "") -> protocol.Reply:
    _check(message.fence, authorization)
    return _reply(ctx, ctx.store.placed(attempt_id, message))


@router.post("/events")
def events(attempt_id: str, message: protocol.Event, ctx: Ctx, authorization: Bearer = "") -> protocol.Reply:
    _check(message.fence, authorization)
    event = NewEvent(message.kind, message.message, message.data)
    return _reply(ctx, ctx.store.add_worker_event(attempt_id, message.fence, event))


@router.post("/exit")
def leave(attempt_id: str, message: protocol.Exit, ctx: Ctx, authorization: Bearer = "") -> protocol.Reply:
    _check(message.fence, authorization)
    if message.result.fence != message.fence:
        raise _stale(attempt_id)
    result = message.result.model_dump(mode="json")
    return _reply(ctx, ctx.store.exited(attempt_id, message.fence, result), new_phase="done")


@router.post("/secrets")
def secrets(
    attempt_id: str, message: protocol.SecretsRequest, ctx: Ctx, authorization: Bearer = ""
) -> protocol.SecretValues:
    """The secrets that the spec of the job names, for the ranks of its live attempt only."""
    _check(message.fence, authorization)
    attempt = ctx.store.attempt(attempt_id)
    job = ctx.store.job(attempt.job_id) if attempt else None
    if attempt is None or job is None or attempt.ended_at is not None or attempt.fence != message.fence:
        raise _stale(attempt_id)
    return _named_secrets(ctx, job)


@router_of_exports.post("/secrets")
def secrets_of_export(
    job_id: str, name: str, message: protocol.SecretsRequest, ctx: Ctx, authorization: Bearer = ""
) -> protocol.SecretValues:
    """The same for a later export, which reads the job's data again."""
    return _named_secrets(ctx, _standing(ctx, job_id, name, message.fence, authorization))


@router_of_exports.post("/heartbeat")
def heartbeat_of_export(
    job_id: str, name: str, message: protocol.Heartbeat, ctx: Ctx, authorization: Bearer = ""
) -> protocol.Reply:
    """Whether this start of it still counts: asked before it registers a model. It renews nothing."""
    _standing(ctx, job_id, name, message.fence, authorization)
    return protocol.Reply()


def _standing(ctx: Context, job_id: str, name: str, fence: str, authorization: str) -> Job:
    """The job of an export whose latest start has this fence."""
    _check(fence, authorization)
    export, job = ctx.store.export(job_id, name), ctx.store.job(job_id)
    if export is None or job is None or export.state is not ExportState.RUNNING or export.fence != fence:
        raise ApiError(409, "stale_fence", f"Export {name} of {job_id} is over or was started again.")
    return job


def _named_secrets(ctx: Context, job: Job) -> protocol.SecretValues:
    named = {variable: value["secret"] for variable, value in job.spec["env"].items() if isinstance(value, dict)}
    found = ctx.secrets.values(job.owner, set(named.values()))
    return protocol.SecretValues(values={variable: found[name] for variable, name in named.items() if name in found})


def _check(fence: str, authorization: str) -> None:
    if not hmac.compare_digest(authorization.encode(), f"Bearer {attempt_token(fence)}".encode()):
        raise ApiError(401, "unauthorized", "This is not the token of the attempt.")


def _reply(ctx: Context, job: Job | None, new_phase: str | None = None) -> protocol.Reply:
    if job is None:
        raise _stale("this one")
    if new_phase is not None:
        ctx.wake.set()
    ctx.hub.changed(job.id)
    return protocol.Reply(stop=job.stop, lease_s=ctx.settings.lease_s)


def _stale(attempt_id: str) -> ApiError:
    return ApiError(409, "stale_fence", f"Attempt {attempt_id} is over or was replaced; stop and write nothing more.")


def progress_of(job: Job, attempt: Attempt, message: protocol.Progress, now: datetime) -> dict[str, Any]:
    """Progress as the API shows it; the estimate takes the pace of this attempt's steps."""
    eta_s = percent = None
    if message.steps:
        percent = round(100 * message.step / message.steps, 2)
        began = (attempt.phases or {}).get("training")
        done = message.step - attempt.resume_step
        if began and done > 0:
            elapsed_s = (now - datetime.fromisoformat(began)).total_seconds()
            eta_s = round(max(0.0, elapsed_s / done * (message.steps - message.step)), 1)
    return {
        **message.model_dump(exclude={"fence"}),
        "metrics": {**(job.progress or {}).get("metrics", {}), **message.metrics},
        "percent": percent,
        "eta_s": eta_s,
    }
