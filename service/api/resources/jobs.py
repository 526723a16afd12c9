"""/v1/jobs: submit, look, and ask for a change."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Response
from fastapi.responses import JSONResponse
from pydantic_core import to_json
from starlette.concurrency import run_in_threadpool

from syncnorm.service.api.auth import Principal
from syncnorm.service.api.dependencies import Context, Ctx, Reader, Submitter, visible_job
from syncnorm.service.api.http.errors import ApiError, bad_spec, refused
from syncnorm.service.api.http.etags import job_tag
from syncnorm.service.api.http.json_body import Json, JsonBody
from syncnorm.service.api.http.route import Route
from syncnorm.service.api.submit_batcher import SubmitRequest
from syncnorm.service.api.views import JobView, job_view
from syncnorm.service.jobs.admission import (
    against_code,
    against_files,
    against_package,
    against_plan,
    against_secrets,
    against_urls,
    needs_a_look,
)
from syncnorm.service.jobs.job import Job
from syncnorm.service.store import StoredResponse
from syncnorm.trainer.contract.plan import Plan, plan
from syncnorm.trainer.contract.spec import JobSpec
from syncnorm.trainer.contract.spec_reader import read_spec
from syncnorm.trainer.errors import Problem, SpecError

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=Route)
Key = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=255)]
_SPEC_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/JobSpec"}}},
    }
}
_PLAN: dict[int | str, dict[str, Any]] = {200: {"description": "The plan (dry_run)", "model": Plan}}


@router.post("", status_code=201, response_model=JobView, responses=_PLAN | refused(410), openapi_extra=_SPEC_BODY)
async def submit(body: Json, ctx: Ctx, who: Submitter, key: Key = None, dry_run: bool = False) -> Response:
    """Submit a job. With dry_run: what it comes to, and nothing is stored.

    A plan shows findings of severity `error`; a submit is refused for them (422). What only a process with torch can
    find is in the plan where `inspected` is true, and is found by an attempt before it trains.
    """
    try:
        spec = await _read(body, ctx, who, dry_run=dry_run)
    except ApiError:
        # What was taken once is answered as it was, whatever is allowed by now.
        if (
            key is None
            or dry_run
            or (before := await run_in_threadpool(ctx.store.idempotency.answer, who.name, key)) is None
        ):
            raise
        return await _replay(before, body, ctx)
    if dry_run:
        return JSONResponse(await run_in_threadpool(_plan, spec, ctx))
    taken = await ctx.submits.take(SubmitRequest(spec, who.name, key, body.digest, who.actor))
    if taken is None:
        raise too_many(ctx, who)
    if not taken.is_new:
        return await _replay(taken.answer, body, ctx)
    ctx.changed(taken.answer.answer["id"])
    return created(taken.answer.answer)


async def _replay(before: StoredResponse, body: JsonBody, ctx: Context) -> Response:
    """Raises: ApiError 422 if the body is another; 410 if the job was deleted since."""
    answer = replayed(before, body)
    job_id = before.answer["id"]
    if await run_in_threadpool(ctx.store.jobs.get, job_id) is None:
        detail = f"This Idempotency-Key stands for job {job_id}, which was deleted. Use a new key to submit it again."
        raise ApiError(410, "job_deleted", detail)
    return answer


def _plan(spec: JobSpec, ctx: Context) -> dict[str, Any]:
    return plan(spec, ctx.reconciler.capacity, ctx.inspect(spec)).as_json()


async def _read(body: JsonBody, ctx: Context, who: Principal, *, dry_run: bool) -> JobSpec:
    try:
        spec = read_spec(body.value)
    except SpecError as error:
        raise bad_spec(error.problems, dry_run=dry_run) from error
    refuse = missing if dry_run else refusals  # a plan shows its errors instead of refusing them
    problems = await run_in_threadpool(refuse, spec, ctx, who) if needs_a_look(spec) else refuse(spec, ctx, who)
    if problems:
        raise bad_spec(problems, dry_run=dry_run)
    return spec


def refusals(spec: JobSpec, ctx: Context, who: Principal) -> list[Problem]:
    """What speaks against a valid spec here: errors of its plan, and what is missing or not allowed."""
    return [*against_plan(spec, ctx.reconciler.capacity), *missing(spec, ctx, who)]


def missing(spec: JobSpec, ctx: Context, who: Principal) -> list[Problem]:
    """Missing files, packages and secrets, and what is not allowed."""
    problems = against_files(spec) if ctx.local_paths else []
    problems += against_package(spec, ctx.packages.has) + against_secrets(spec, who.name, ctx.secrets.missing)
    problems += [] if ctx.settings.allow_code else against_code(spec) + against_urls(spec, ctx.settings.data_urls)
    return problems


def too_many(ctx: Context, who: Principal) -> ApiError:
    detail = f"{who.name} may have {ctx.settings.max_queued} unfinished jobs, no more; wait or cancel some."
    return ApiError(429, "too_many_jobs", detail, headers={"Retry-After": "60"})


def created(content: dict[str, Any], headers: dict[str, str] | None = None, what: str = "jobs") -> Response:
    location = {"Location": f"/v1/{what}/{content['id']}"}
    return Response(to_json(content, inf_nan_mode="strings"), 201, location | (headers or {}), "application/json")


def replayed(before: StoredResponse, body: JsonBody, what: str = "jobs") -> Response:
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
