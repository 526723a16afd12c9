"""Cancel, pause, resume or retry jobs: one by its address, or many by ids or filter.

The scope comes from `Submitter` (dependencies.py), and the store leaves the jobs of other owners alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from syncnorm.service.api.audit_trail import AuditTrail
from syncnorm.service.api.auth import Principal
from syncnorm.service.api.components import Components, JobChanges
from syncnorm.service.api.dependencies import Submitter, may_be_id, provide
from syncnorm.service.api.http.errors import ApiError, not_found, problem_details, refused
from syncnorm.service.api.http.pagination import LONGEST, decode, encode, list_id
from syncnorm.service.api.http.route import Route
from syncnorm.service.api.views.job_view import JobView, job_view
from syncnorm.service.api.views.view import View
from syncnorm.service.jobs.actions import ALLOWED, Verb, allowed
from syncnorm.service.jobs.actors import NewAuditEntry
from syncnorm.service.jobs.job import Job, JobState
from syncnorm.service.store import JobQuery, VerbResult
from syncnorm.service.store.tables.jobs import JobTable
from syncnorm.trainer.contract.spec import Label, LabelName

router = APIRouter(prefix="/v1", tags=["jobs"], route_class=Route)


@dataclass(frozen=True)
class _Verbs:
    jobs: JobTable
    now: Callable[[], datetime]
    audit_trail: AuditTrail
    changed: JobChanges
    mlflow_uri: str


def _verbs(parts: Components) -> _Verbs:
    return _Verbs(parts.store.jobs, parts.store.now, parts.audit_trail, parts.job_changes, parts.mlflow_uri)


Verbs = Annotated[_Verbs, Depends(provide(_verbs))]
MOST = 500
"""Jobs in one call."""
Id = Annotated[str, StringConstraints(min_length=1, max_length=40)]
Name = Annotated[str, StringConstraints(max_length=120)]


class JobFilter(BaseModel):
    """Which jobs: all the conditions you give must hold. {} means every job that the verb can act on and that you may
    see."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    state: Annotated[list[JobState], Field(min_length=1, max_length=9)] | None = None
    """In any of these states. Default: null, all states in which the verb is possible."""
    project: Name | None = None
    """Of this project. Default: null, of any."""
    owner: Name | None = None
    """Of this owner; admins only see those of others. Default: null, of any owner that you may see."""
    norm: Name | None = None
    """With this normalization in use. Default: null, with any."""
    name: Name | None = None
    """With exactly this name. Default: null, with any."""
    labels: Annotated[dict[LabelName, Label], Field(max_length=32)] = {}
    """With all of these labels. Default: none required."""


_NULL: dict[str, Any] = {"type": "null"}
_ONE_WAY: dict[str, Any] = {
    "if": {"required": ["ids"], "properties": {"ids": {"type": "array"}}},
    "then": {"properties": {"filter": _NULL, "cursor": _NULL}},
    "else": {"required": ["filter"], "properties": {"filter": {"type": "object"}}},
}
"""What `_one_way` checks, for the OpenAPI document. Generators of clients read no oneOf of objects."""


class JobSelection(BaseModel):
    """The jobs to act on: by ids, or by a filter, which takes up to 500 jobs in one call."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=_ONE_WAY, use_attribute_docstrings=True)

    ids: Annotated[list[Id], Field(min_length=1, max_length=MOST)] | None = None
    """Ids of 1 to 500 jobs. Give exactly one of ids and filter."""
    filter: JobFilter | None = None
    """Conditions that choose the jobs. Give exactly one of ids and filter."""
    cursor: Annotated[str, StringConstraints(max_length=LONGEST)] | None = None
    """With a filter only: next_cursor of the call before, to continue behind its jobs. Default: null, from the
    first."""

    @model_validator(mode="after")
    def _one_way(self) -> JobSelection:
        if (self.ids is None) == (self.filter is None):
            raise ValueError("exactly one of ids and filter must be given")
        if self.ids is not None and self.cursor is not None:
            raise ValueError("cursor belongs to filter, and can't be given with ids")
        return self


class VerbResultView(View):
    """What the verb did to one job."""

    id: str
    """Id of the job, as you gave it."""
    ok: bool
    """Whether the job is now as you asked, or on its way."""
    status: int
    """HTTP status that the job's own address would answer. 200: it was so before."""
    job: JobView | None = None
    """The job now; null where there is a problem."""
    problem: dict[str, Any] | None = None
    """The problem that the job's own address would answer; null where there is none."""


class VerbResultPage(View):
    """What the verb did to each job."""

    items: list[VerbResultView]
    """An answer for each job, in your order or that of the filter."""
    next_cursor: str | None = None
    """Send it as `cursor`, with the same filter, to act on the jobs that follow. null: there are no more."""


_ALREADY: dict[int | str, dict[str, Any]] = {
    200: {"model": JobView, "description": "The job was already as you asked; nothing changed"}
}


@router.post("/jobs:cancel")
def cancel_many(body: JobSelection, verbs: Verbs, who: Submitter) -> VerbResultPage:
    """Ask jobs to end, each as POST /v1/jobs/{id}/cancel does."""
    return _apply_to_many(verbs, who, body, "cancel")


@router.post("/jobs:pause")
def pause_many(body: JobSelection, verbs: Verbs, who: Submitter) -> VerbResultPage:
    """Ask jobs to stop with a checkpoint, each as POST /v1/jobs/{id}/pause does."""
    return _apply_to_many(verbs, who, body, "pause")


@router.post("/jobs:resume")
def resume_many(body: JobSelection, verbs: Verbs, who: Submitter) -> VerbResultPage:
    """Put paused jobs back into the queue, each as POST /v1/jobs/{id}/resume does."""
    return _apply_to_many(verbs, who, body, "resume")


@router.post("/jobs:retry")
def retry_many(body: JobSelection, verbs: Verbs, who: Submitter) -> VerbResultPage:
    """Put failed or cancelled jobs back into the queue, each as POST /v1/jobs/{id}/retry does."""
    return _apply_to_many(verbs, who, body, "retry")


@router.post("/jobs/{job_id}/cancel", status_code=202, responses=_ALREADY | refused(409))
def cancel(job_id: str, response: Response, verbs: Verbs, who: Submitter) -> JobView:
    """Ask the job to end. It stops after the current batch, with a checkpoint. If the job is cancelled already, you get
    200 and nothing changes."""
    return _apply_to_one(verbs, who, job_id, "cancel", response)


@router.post("/jobs/{job_id}/pause", status_code=202, responses=_ALREADY | refused(409))
def pause(job_id: str, response: Response, verbs: Verbs, who: Submitter) -> JobView:
    """Ask the job to stop with a checkpoint and to free its resources until you resume it. If the job is paused
    already, you get 200 and nothing changes."""
    return _apply_to_one(verbs, who, job_id, "pause", response)


@router.post("/jobs/{job_id}/resume", status_code=202, responses=_ALREADY | refused(409))
def resume(job_id: str, response: Response, verbs: Verbs, who: Submitter) -> JobView:
    """Put a paused job back into the queue. It continues from the step it stopped at. If it was put back already, you
    get 200 and nothing changes."""
    return _apply_to_one(verbs, who, job_id, "resume", response)


@router.post("/jobs/{job_id}/retry", status_code=202, responses=_ALREADY | refused(409))
def retry(job_id: str, response: Response, verbs: Verbs, who: Submitter) -> JobView:
    """Put a failed or cancelled job back into the queue. It continues from its last checkpoint; its failures are
    forgotten, and limits.deadline_s starts again. If it was put back already, you get 200 and nothing changes. If the
    deadline was too short, raise it first: PATCH the job's limits."""
    return _apply_to_one(verbs, who, job_id, "retry", response)


def _apply_to_one(verbs: _Verbs, who: Principal, job_id: str, verb: Verb, response: Response) -> JobView:
    (answer,) = _apply_verb(verbs, who, [job_id], verb)
    if isinstance(answer, ApiError):
        raise answer
    status, job = answer
    response.status_code = status
    return job_view(job, verbs.mlflow_uri)


def _apply_to_many(verbs: _Verbs, who: Principal, body: JobSelection, verb: Verb) -> VerbResultPage:
    if body.ids is not None:
        ids, following = list(dict.fromkeys(body.ids)), None
    else:
        assert body.filter is not None
        ids, following = _matching(verbs, who, body.filter, verb, body.cursor)
    answers = _apply_verb(verbs, who, ids, verb)
    items = [_as_item(verbs, who, job_id, verb, answer) for job_id, answer in zip(ids, answers, strict=True)]
    for item in items:
        if item.problem is not None:
            detail = f"{item.status} {item.problem['code']}"
            verbs.audit_trail.add(NewAuditEntry(who.actor, f"job.{verb}", item.id, outcome="refused", detail=detail))
    return VerbResultPage(items=items, next_cursor=following)


def _matching(
    verbs: _Verbs, who: Principal, wanted: JobFilter, verb: Verb, cursor: str | None
) -> tuple[list[str], str | None]:
    """(ids, cursor of the following ones)."""
    owner = wanted.owner if who.is_admin else who.name
    if wanted.owner not in (None, owner):
        return [], None
    listing = list_id(verb, owner=owner, filter=wanted.model_dump(mode="json"))
    query = JobQuery(
        states=tuple(wanted.state or [state for state, verbs in ALLOWED.items() if verb in verbs]),
        project=wanted.project,
        owner=owner,
        norm=wanted.norm,
        name=wanted.name,
        labels=tuple(wanted.labels.items()),
        after=(None, decode(listing, cursor, str)[0]) if cursor is not None else None,
        limit=MOST,
    )
    ids = verbs.jobs.find_ids(query)
    return ids, encode(listing, ids[-1]) if len(ids) == MOST else None


def _apply_verb(verbs: _Verbs, who: Principal, ids: Sequence[str], verb: Verb) -> list[tuple[int, Job] | ApiError]:
    """For each job: (200 if it was so already, else 202; the job), or the problem."""
    owner = None if who.is_admin else who.name
    results = verbs.jobs.apply(list(filter(may_be_id, ids)), verb, verbs.now(), who.actor, owner)
    return [_answer(verbs, who, job_id, results.get(job_id), verb) for job_id in ids]


def _answer(
    verbs: _Verbs, who: Principal, job_id: str, result: VerbResult | None, verb: Verb
) -> tuple[int, Job] | ApiError:
    if result is None:
        return not_found("job", job_id)
    job = result.job
    if result.outcome == "refused":
        return conflict(job, verb)
    if result.outcome == "done":
        verbs.changed(job.id)
        return 202, job
    verbs.audit_trail.add(NewAuditEntry(who.actor, f"job.{verb}", job.id, outcome="unchanged"))
    return (202 if job.stop == verb else 200), job


def _as_item(
    verbs: _Verbs, who: Principal, job_id: str, verb: Verb, answer: tuple[int, Job] | ApiError
) -> VerbResultView:
    if isinstance(answer, ApiError):
        problem = problem_details(answer, f"/v1/jobs/{job_id}/{verb}", who.request_id or "")
        return VerbResultView(id=job_id, ok=False, status=answer.status, problem=problem)
    status, job = answer
    return VerbResultView(id=job_id, ok=True, status=status, job=job_view(job, verbs.mlflow_uri))


def conflict(job: Job, verb: str) -> ApiError:
    possible = allowed(job)
    stopping = f" and was asked to {job.stop}" if job.stop in ("cancel", "pause") else ""
    detail = f"Job {job.id} is {job.state}{stopping}, so {verb} is not allowed. Allowed: {', '.join(possible)}."
    return ApiError(409, "state_conflict", detail, extra={"state": job.state, "allowed": possible})
