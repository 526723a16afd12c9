"""/v1/jobs: submit, look, and ask for a change."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Response
from fastapi.responses import JSONResponse
from pydantic_core import to_json
from starlette.concurrency import run_in_threadpool

from service.api.body import Json, JsonBody
from service.api.context import Context, Ctx, Reader, Submitter, visible_job
from service.api.etags import job_tag
from service.api.route import Route
from service.asks import ALLOWED, Verb, ask
from service.auth import Principal
from service.errors import ApiError, bad_spec, refused
from service.intake import Submit
from service.jobs import Job
from service.store import Answer
from service.submit import (
    against_cluster,
    against_code,
    against_files,
    against_package,
    against_secrets,
    against_urls,
    needs_a_look,
)
from service.views import JobView, job_view
from trainer.plan import Plan, plan
from trainer.spec import JobSpec
from trainer.spec_reader import Problem, SpecError, read_spec

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=Route)
_TRIES = 8
Key = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=255)]
_SPEC_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/JobSpec"}}},
    }
}
_PLAN: dict[int | str, dict[str, Any]] = {200: {"description": "The plan (dry_run)", "model": Plan}}


@router.post("", status_code=201, response_model=JobView, responses=_PLAN, openapi_extra=_SPEC_BODY)
async def submit(body: Json, ctx: Ctx, who: Submitter, key: Key = None, dry_run: bool = False) -> Response:
    """Submit a job. With dry_run: what it comes to, and nothing is stored."""
    try:
        spec = await _read(body, ctx, who)
    except ApiError:
        # What was taken once is answered as it was, whatever is allowed by now.
        if key is None or dry_run or (before := await run_in_threadpool(ctx.store.answer, who.name, key)) is None:
            raise
        return again(before, body)
    if dry_run:
        return JSONResponse(await run_in_threadpool(_plan, spec, ctx))
    taken = await ctx.intake.take(Submit(spec, who.name, key, body.digest))
    if taken is None:
        raise too_many(ctx, who)
    if not taken.is_new:
        return again(taken.answer, body)
    ctx.changed(taken.answer.answer["id"])
    return created(taken.answer.answer)


def _plan(spec: JobSpec, ctx: Context) -> dict[str, Any]:
    return plan(spec, ctx.reconciler.capacity, ctx.inspect(spec)).as_json()


async def _read(body: JsonBody, ctx: Context, who: Principal) -> JobSpec:
    try:
        spec = read_spec(body.value)
    except SpecError as error:
        raise bad_spec(error.problems) from error
    problems = await run_in_threadpool(refusals, spec, ctx, who) if needs_a_look(spec) else refusals(spec, ctx, who)
    if problems:
        raise bad_spec(problems)
    return spec


def refusals(spec: JobSpec, ctx: Context, who: Principal) -> list[Problem]:
    """What speaks against a valid spec here: the cluster, missing files, packages and secrets, what is not allowed."""
    problems = against_cluster(spec, ctx.reconciler.capacity)
    problems += against_files(spec) if ctx.local_paths else []
    problems += against_package(spec, ctx.packages.has) + against_secrets(spec, who.name, ctx.secrets.missing)
    problems += [] if ctx.settings.allow_code else against_code(spec) + against_urls(spec, ctx.settings.data_urls)
    return problems


def too_many(ctx: Context, who: Principal) -> ApiError:
    detail = f"{who.name} may have {ctx.settings.max_queued} unfinished jobs, no more; wait or cancel some."
    return ApiError(429, "too_many_jobs", detail, headers={"Retry-After": "60"})


def created(content: dict[str, Any], headers: dict[str, str] | None = None, what: str = "jobs") -> Response:
    location = {"Location": f"/v1/{what}/{content['id']}"}
    return Response(to_json(content, inf_nan_mode="strings"), 201, location | (headers or {}), "application/json")


def again(before: Answer, body: JsonBody, what: str = "jobs") -> Response:
    """The answer given before under the same key.

    Raises: ApiError 422 if the body is another.
    """
    if before.request_hash != body.digest:
        raise reused_key("job")
    return created(before.answer, {"Idempotency-Replayed": "true"}, what)


def reused_key(what: str) -> ApiError:
    detail = f"This Idempotency-Key was used with another body. Take a new key for each {what}."
    return ApiError(422, "idempotency_key_reused", detail)


@router.get("/{job_id}", response_model=JobView)
def get_job(job_id: str, ctx: Ctx, who: Reader) -> Response:
    """A job as it stands."""
    return shown(ctx, visible_job(ctx, who, job_id))


def shown(ctx: Context, job: Job) -> Response:
    """The view of a job, with its ETag."""
    body = job_view(job, ctx.mlflow_uri).model_dump_json().encode()
    return Response(body, headers={"ETag": job_tag(job, body)}, media_type="application/json")


@router.post("/{job_id}/cancel", status_code=202, responses=refused(409))
def cancel(job_id: str, ctx: Ctx, who: Submitter) -> JobView:
    """Ask for the job to end. It stops at the next batch, with a checkpoint; asking again changes nothing."""
    return _ask(ctx, visible_job(ctx, who, job_id), "cancel")


@router.post("/{job_id}/pause", status_code=202, responses=refused(409))
def pause(job_id: str, ctx: Ctx, who: Submitter) -> JobView:
    """Ask for the job to stop with a checkpoint and to give its room back, until it is resumed."""
    return _ask(ctx, visible_job(ctx, who, job_id), "pause")


@router.post("/{job_id}/resume", status_code=202, responses=refused(409))
def resume(job_id: str, ctx: Ctx, who: Submitter) -> JobView:
    """Put a paused job back into the queue; it goes on from the step it stopped at."""
    return _ask(ctx, visible_job(ctx, who, job_id), "resume")


@router.post("/{job_id}/retry", status_code=202, responses=refused(409))
def retry(job_id: str, ctx: Ctx, who: Submitter) -> JobView:
    """Put a failed or cancelled job back into the queue; it goes on from its last checkpoint."""
    return _ask(ctx, visible_job(ctx, who, job_id), "retry")


def _ask(ctx: Context, job: Job, verb: Verb) -> JobView:
    for _ in range(_TRIES):
        try:
            change = ask(job, verb, ctx.store.now())
        except ValueError as error:
            raise conflict(job, verb) from error
        if change is None:
            return job_view(job, ctx.mlflow_uri)
        moved = ctx.store.move(job, change.to, change.changes, event=change.event)
        if moved is not None:
            ctx.changed(job.id)
            return job_view(moved, ctx.mlflow_uri)
        job = ctx.store.job(job.id) or job
    raise ApiError(503, "busy", "The job keeps changing; try again.", headers={"Retry-After": "1"})


def conflict(job: Job, verb: str) -> ApiError:
    allowed = list(ALLOWED[job.state])
    detail = f"Job {job.id} is {job.state}, so {verb} is not possible. Possible: {', '.join(allowed)}."
    return ApiError(409, "state_conflict", detail, extra={"state": job.state, "allowed": allowed})
