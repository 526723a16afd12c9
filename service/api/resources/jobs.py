"""/v1/jobs: submit a job, plan it, and read it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Response
from fastapi.responses import JSONResponse
from pydantic_core import to_json
from starlette.concurrency import run_in_threadpool

from syncnorm.service.api.auth import Principal
from syncnorm.service.api.components import Components, JobChanges
from syncnorm.service.api.dependencies import Reader, Submitter, provide, visible_job
from syncnorm.service.api.http.errors import ApiError, bad_spec, refused
from syncnorm.service.api.http.etags import job_tag
from syncnorm.service.api.http.json_body import Json, JsonBody
from syncnorm.service.api.http.route import Route
from syncnorm.service.api.submit_batcher import SubmitBatcher, SubmitRequest
from syncnorm.service.api.views.job_view import JobView, job_view
from syncnorm.service.jobs.admission import AdmissionChecks, needs_lookup
from syncnorm.service.jobs.job import Job
from syncnorm.service.store import StoredResponse
from syncnorm.service.store.tables.idempotency import IdempotencyTable
from syncnorm.service.store.tables.jobs import JobTable
from syncnorm.trainer.contract.plan import Inspection, Plan, plan
from syncnorm.trainer.contract.spec import JobSpec
from syncnorm.trainer.contract.spec_reader import read_spec
from syncnorm.trainer.errors import SpecError

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=Route)


@dataclass(frozen=True)
class _Jobs:
    table: JobTable
    idempotency: IdempotencyTable
    submits: SubmitBatcher
    checks: AdmissionChecks
    inspect: Callable[[JobSpec], Inspection | None]
    changed: JobChanges
    mlflow_uri: str
    max_unfinished: int


def _jobs(parts: Components) -> _Jobs:
    return _Jobs(
        parts.store.jobs,
        parts.store.idempotency,
        parts.submits,
        parts.admission_checks,
        parts.inspect,
        parts.job_changes,
        parts.mlflow_uri,
        parts.settings.max_queued,
    )


Jobs = Annotated[_Jobs, Depends(provide(_jobs))]
Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        description="A key of yours for this submit. Sent again with the same key and body, it gets the same answer.",
    ),
]
DryRun = Annotated[bool, Query(description="Answer with the plan, and store nothing. Default: false.")]
_SPEC_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/JobSpec"}}},
    }
}
_PLAN: dict[int | str, dict[str, Any]] = {200: {"description": "The plan (dry_run)", "model": Plan}}


@router.post("", status_code=201, response_model=JobView, responses=_PLAN | refused(410), openapi_extra=_SPEC_BODY)
async def submit(body: Json, jobs: Jobs, who: Submitter, key: Key = None, dry_run: DryRun = False) -> Response:
    """Submit a job. With dry_run: what it comes to, and nothing is stored.

    A plan shows findings of severity `error`; a submit is refused for them (422). Findings that need torch are in the
    plan where `inspected` is true. In any case an attempt finds them before it trains.
    """
    try:
        spec = await _read(body, jobs, who, dry_run=dry_run)
    except ApiError:
        # A submit that was accepted once gets the same answer, even if it would be refused now.
        if (
            key is None
            or dry_run
            or (before := await run_in_threadpool(jobs.idempotency.answer, who.name, key)) is None
        ):
            raise
        return await _replay(before, body, jobs)
    if dry_run:
        return JSONResponse(await run_in_threadpool(_plan, spec, jobs))
    taken = await jobs.submits.take(SubmitRequest(spec, who.name, key, body.digest, who.actor))
    if taken is None:
        raise too_many(who, jobs.max_unfinished)
    if not taken.is_new:
        return await _replay(taken.answer, body, jobs)
    jobs.changed(taken.answer.answer["id"])
    return created(taken.answer.answer)


async def _replay(before: StoredResponse, body: JsonBody, jobs: _Jobs) -> Response:
    """Raises: ApiError 422 if the body is another; 410 if the job was deleted since."""
    answer = replayed(before, body)
    job_id = before.answer["id"]
    if await run_in_threadpool(jobs.table.get, job_id) is None:
        detail = f"This Idempotency-Key belongs to job {job_id}, which was deleted. Use a new key to submit it again."
        raise ApiError(410, "job_deleted", detail)
    return answer


def _plan(spec: JobSpec, jobs: _Jobs) -> dict[str, Any]:
    return plan(spec, jobs.checks.capacity(), jobs.inspect(spec)).as_json()


async def _read(body: JsonBody, jobs: _Jobs, who: Principal, *, dry_run: bool) -> JobSpec:
    try:
        spec = read_spec(body.value)
        # A plan shows its errors instead of refusing them.
        admit = partial(jobs.checks.admit, spec, who.name, sees_all=who.is_admin, is_plan=dry_run)
        return await run_in_threadpool(admit) if needs_lookup(spec) else admit()
    except SpecError as error:
        raise bad_spec(error.problems, dry_run=dry_run) from error


def too_many(who: Principal, max_unfinished: int) -> ApiError:
    detail = (
        f"{who.name} has reached the limit of {max_unfinished} unfinished jobs. Wait for some to finish, or cancel "
        "some."
    )
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
    detail = f"This Idempotency-Key was used with another body. Use a new key for each {what}."
    return ApiError(422, "idempotency_key_reused", detail)


@router.get("/{job_id}", response_model=JobView)
def get_job(job_id: str, jobs: Jobs, who: Reader) -> Response:
    """A job as it is now."""
    return shown(visible_job(jobs.table, who, job_id), jobs.mlflow_uri)


def shown(job: Job, mlflow_uri: str) -> Response:
    """The view of a job, with its ETag."""
    body = job_view(job, mlflow_uri).model_dump_json().encode()
    return Response(body, headers={"ETag": job_tag(job, body)}, media_type="application/json")
