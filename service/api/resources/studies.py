"""/v1/studies: submit, read and control a family of jobs as one."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json

from syncnorm.service.api.auth import Principal
from syncnorm.service.api.components import Components, JobChanges
from syncnorm.service.api.dependencies import Reader, Submitter, provide, visible_study
from syncnorm.service.api.http.accept import wanted
from syncnorm.service.api.http.errors import ApiError, FieldProblem, bad_spec, refused
from syncnorm.service.api.http.json_body import Json, JsonBody
from syncnorm.service.api.http.pagination import Cursor, decode, encode, list_id
from syncnorm.service.api.http.route import JSON, Route
from syncnorm.service.api.resources.jobs import DryRun, Key, created, replayed, too_many
from syncnorm.service.api.views.job_view import MlflowView
from syncnorm.service.api.views.view import View
from syncnorm.service.integrations.mlflow_experiment import run_page
from syncnorm.service.jobs.actions import Verb
from syncnorm.service.jobs.admission import AdmissionChecks
from syncnorm.service.jobs.job import Job
from syncnorm.service.jobs.study import Counts, Study, StudyChild, StudyState, count_states, new_study, state_of
from syncnorm.service.jobs.study_growth import GrowthError, more_seeds
from syncnorm.service.jobs.study_spec import (
    MAX_SEEDS,
    Child,
    Seed,
    StudySpec,
    expand,
    optimizer_problems,
    read_study,
)
from syncnorm.service.store import AddOutcome, GrowOutcome, StoredResponse
from syncnorm.service.store.tables.idempotency import IdempotencyTable
from syncnorm.service.store.tables.studies import StudyTable
from syncnorm.service.studies.measures import Outcome
from syncnorm.service.studies.publisher import StudyPublisher, UnreadableStudyError, draw_report
from syncnorm.service.studies.report import as_html, as_json
from syncnorm.service.studies.values_csv import as_csv
from syncnorm.trainer.contract.plan import Inspection
from syncnorm.trainer.contract.spec import JobSpec
from syncnorm.trainer.errors import SpecError

router = APIRouter(prefix="/v1/studies", tags=["studies"], route_class=Route)


@dataclass(frozen=True)
class _Studies:
    table: StudyTable
    idempotency: IdempotencyTable
    publisher: StudyPublisher
    checks: AdmissionChecks
    inspect: Callable[[JobSpec], Inspection | None]
    now: Callable[[], datetime]
    wake: threading.Event
    changed: JobChanges
    mlflow_uri: str
    max_unfinished: int


def _studies(parts: Components) -> _Studies:
    return _Studies(
        parts.store.studies,
        parts.store.idempotency,
        parts.studies,
        parts.admission_checks,
        parts.inspect,
        parts.store.now,
        parts.wake,
        parts.job_changes,
        parts.mlflow_uri,
        parts.settings.max_queued,
    )


Studies = Annotated[_Studies, Depends(provide(_studies))]
_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/StudySpec"}}},
    }
}
_MOST_TRIES = 5
_FORMATS = {"html": "text/html", "png": "image/png", "json": JSON, "csv": "text/csv"}
_REPORT: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {
            "text/html": {"schema": {"type": "string"}},
            "image/png": {"schema": {"type": "string", "format": "binary"}},
            "application/json": {"schema": {"type": "object"}},
            "text/csv": {"schema": {"type": "string"}},
        }
    }
}


class StudyView(View):
    """A study."""

    id: str
    """Id of the study."""
    name: str
    """The spec's name."""
    project: str
    """The project of its jobs."""
    owner: str
    """Who submitted it."""
    state: StudyState
    """Where the study is; it follows from its jobs."""
    jobs: dict[str, int]
    """How many of its jobs are in each state; `deleted`: jobs that no longer exist."""
    mlflow: MlflowView
    """The study's run in MLflow, which holds its report."""
    created_at: datetime
    """When it was submitted."""
    reported_at: datetime | None
    """When the report in MLflow was made; null if there is none, or a job has changed since."""
    problem: str | None = None
    """Why the report could not be written to MLflow, or which part of the study can't be read; null if all is well."""


class ChildView(View):
    """A job of a study."""

    number: int
    """Its place in the grid, from 1, seeds innermost. Jobs of seeds that were added later follow."""
    job_id: str
    """Id of the job."""
    name: str
    """Name of the job."""
    point: dict[str, str]
    """Label of its value on each axis of the grid."""
    seed: int
    """Its seed."""
    state: str
    """State of the job, or `deleted`."""
    reason: str | None
    """Why the job failed; null otherwise."""
    message: str
    """What happened to the job, in a sentence."""
    run_url: str | None
    """Page of its run in MLflow; null until there is one."""


class StudyDetail(StudyView):
    """A study with its jobs and the comparison as it stands."""

    spec: dict[str, Any]
    """The study's spec, defaults included."""
    children: list[ChildView]
    """Its jobs, in the order of the grid."""
    findings: list[dict[str, Any]]
    """What became of each claim, as in the report's JSON."""
    table: list[dict[str, Any]]
    """The comparison table, as in the report's JSON."""
    missing: list[str]
    """Metrics that jobs which succeeded don't have, in sentences."""


class PlannedJob(View):
    """A job that a study would submit."""

    number: int
    """Its place in the grid, from 1, seeds innermost."""
    name: str
    """Name of the job."""
    point: dict[str, str]
    """Label of its value on each axis of the grid."""
    seed: int
    """Its seed."""
    spec: dict[str, Any]
    """Its spec, defaults included. Send it to `POST /v1/jobs?dry_run=true` for its plan."""


class StudyPlan(View):
    """What a study comes to."""

    spec: dict[str, Any]
    """The study's spec, defaults included."""
    jobs: list[PlannedJob]
    """Its jobs, in the order of the grid."""


class StudyPage(View):
    """A page of studies."""

    items: list[StudyView]
    """The studies, newest first."""
    next_cursor: str | None
    """Send it as `cursor` to get the next page. null: this is the last page."""


_PLAN: dict[int | str, dict[str, Any]] = {200: {"description": "The jobs (dry_run)", "model": StudyPlan}}


@router.post("", status_code=201, response_model=StudyView, responses=_PLAN, openapi_extra=_BODY)
def submit(body: Json, studies: Studies, who: Submitter, key: Key = None, dry_run: DryRun = False) -> Response:
    """Submit a study. All its jobs enter the queue together, or none does. With dry_run: its jobs, and nothing is
    stored.

    A grid over `optimizer` or `schedule` is refused where your LightningModule has a configure_optimizers of its own,
    unless `optimizer.override` is true. The service builds the model to see that, if its host has torch.
    """
    try:
        spec, children = _read(body.value, studies, who, dry_run=dry_run)
    except ApiError:
        # A submit that was accepted once gets the same answer, even if it would be refused now.
        if key is None or dry_run or (before := studies.idempotency.answer(who.name, key)) is None:
            raise
        return replayed(before, _keyed(body), "studies")
    if dry_run:
        return Response(_plan(spec, children).model_dump_json(), media_type=JSON)
    study, rows, jobs = new_study(spec, children, who.name, studies.now())
    content = study_view(studies.mlflow_uri, study, count_states(jobs)).model_dump(mode="json")
    idempotency = None if key is None else (key, StoredResponse(_keyed(body).digest, content))
    result = studies.table.add(study, rows, jobs, idempotency, studies.max_unfinished, who.actor)
    if isinstance(result, StoredResponse):
        return replayed(result, _keyed(body), "studies")
    if result is AddOutcome.TOO_MANY:
        raise too_many(who, studies.max_unfinished)
    studies.wake.set()
    return created(content, what="studies")


def _plan(spec: StudySpec, children: Sequence[Child]) -> StudyPlan:
    jobs = [
        PlannedJob(
            number=child.number,
            name=child.spec.name,
            point=child.point,
            seed=child.seed,
            spec=child.spec.model_dump(mode="json"),
        )
        for child in children
    ]
    return StudyPlan(spec=spec.model_dump(mode="json"), jobs=jobs)


def _keyed(body: JsonBody) -> JsonBody:
    """With a digest of its own: the same key and body sent to /v1/jobs is another request."""
    return replace(body, digest=hashlib.sha256(f"study {body.digest}".encode()).hexdigest())


def _read(value: Any, studies: _Studies, who: Principal, *, dry_run: bool) -> tuple[StudySpec, list[Child]]:
    try:
        spec = read_study(value)
        children = expand(spec, lambda child: studies.checks.admit(child, who.name, sees_all=who.is_admin))
        if problems := list(optimizer_problems(spec, children, studies.inspect)):
            raise SpecError(problems)
    except SpecError as error:
        found = [FieldProblem(pointer=problem.path, detail=problem.message) for problem in error.problems]
        count = f"{len(found)} problems" if len(found) > 1 else "1 problem"
        detail = f"The study has {count}." if dry_run else f"The study has {count}; nothing was stored."
        raise ApiError(422, "invalid_spec", detail, errors=found) from error
    return spec, children


@router.get("")
def list_studies(
    *,
    studies: Studies,
    who: Reader,
    limit: Annotated[int, Query(ge=1, le=200, description="Most studies in a page. Default: 50.")] = 50,
    cursor: Cursor = None,
) -> StudyPage:
    """Studies, newest first."""
    owner = None if who.is_admin else who.name
    listing = list_id("studies", owner=owner)
    found = studies.table.find(owner, decode(listing, cursor, str)[0] if cursor is not None else None, limit)
    counts = studies.table.count_children([study.id for study in found])
    items = [study_view(studies.mlflow_uri, study, counts[study.id]) for study in found]
    return StudyPage(items=items, next_cursor=encode(listing, found[-1].id) if len(found) == limit else None)


@router.get("/{study_id}")
def get_study(study_id: str, studies: Studies, who: Reader) -> StudyDetail:
    """A study with its jobs and the comparison table as it is now."""
    study = visible_study(studies.table, who, study_id)
    family = studies.table.family(study_id)
    shown = study_view(studies.mlflow_uri, study, count_states(job for _, job in family))
    try:
        report = studies.publisher.report(study, family)
    except UnreadableStudyError as error:
        children: Sequence[Outcome] = studies.publisher.outcomes(family)
        document: dict[str, Any] = {"findings": [], "table": [], "missing": []}
        shown = shown.model_copy(update={"problem": str(error)})
    else:
        children, document = report.outcomes, as_json(report)
    return StudyDetail(
        **shown.model_dump(),
        spec=study.spec,
        children=[ChildView(**{name: getattr(one, name) for name in ChildView.model_fields}) for one in children],
        findings=document["findings"],
        table=document["table"],
        missing=document["missing"],
    )


@router.get("/{study_id}/report", response_class=Response, responses=_REPORT)
def get_report(
    *,
    study_id: str,
    studies: Studies,
    who: Reader,
    request: Request,
    format: Annotated[
        Literal["html", "png", "json", "csv"] | None, Query(description="Default: what the header Accept asks for.")
    ] = None,
    picture: Annotated[
        Literal["comparison", "curves", "heat_map"], Query(description="Which picture a png shows.")
    ] = "comparison",
) -> Response:
    """The report as it is now: a self-contained HTML page, one of its pictures, JSON, or CSV with the values of each
    job.
    """
    study = visible_study(studies.table, who, study_id)
    form = _FORMATS[format] if format else wanted(request, list(_FORMATS.values()))
    try:
        report = studies.publisher.report(study, studies.table.family(study_id))
    except UnreadableStudyError as error:
        raise ApiError(404, "not_measured", f"There is no report: {error}") from error
    vary = {"Vary": "Accept"}
    if form == JSON:
        return Response(to_json(as_json(report), inf_nan_mode="strings"), headers=vary, media_type=JSON)
    if form == _FORMATS["csv"]:
        return Response(as_csv(report), headers=vary, media_type=form)
    pictures = draw_report(report)
    if form == _FORMATS["html"]:
        return HTMLResponse(as_html(report, pictures), headers=vary)
    if picture not in pictures:
        raise ApiError(404, "not_measured", f"Study {study_id} has no measurements yet for the picture {picture}.")
    return Response(pictures[picture], headers=vary, media_type=form)


class MoreSeeds(BaseModel):
    """Seeds that a study is to have."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)

    seeds: Annotated[list[Seed], Field(min_length=1, max_length=MAX_SEEDS)]
    """Every combination runs with each of them. Those that the study has are left as they are."""


@router.post("/{study_id}/seeds", status_code=202, responses=refused(409, 429))
def add_seeds(study_id: str, body: MoreSeeds, studies: Studies, who: Submitter) -> StudyView:
    """Run every combination of the study with more seeds.

    Its new jobs have the specs of those it has, code included, and differ in their seeds alone. They all enter the
    queue, or none does. You may repeat the request: nothing is added twice. Once they are finished, the report in
    MLflow is made anew.
    """
    for _ in range(_MOST_TRIES):
        study = visible_study(studies.table, who, study_id)
        grown = _grown(studies, who, study, body.seeds)
        result = studies.table.grow(study, grown, studies.max_unfinished, who.actor) if grown else GrowOutcome.STORED
        if result is GrowOutcome.TOO_MANY:
            raise too_many(who, studies.max_unfinished)
        if result is GrowOutcome.STORED:
            break
    else:
        raise _cannot_grow(studies, study, "Others change this study all the time. Send the request again.")
    studies.wake.set()
    return study_view(studies.mlflow_uri, study, studies.table.count_children([study.id])[study.id])


def _grown(studies: _Studies, who: Principal, study: Study, seeds: Sequence[int]) -> list[tuple[StudyChild, Job]]:
    def admit(spec: JobSpec) -> JobSpec:
        return studies.checks.admit(spec, study.owner, sees_all=who.is_admin)

    try:
        return more_seeds(study, studies.table.family(study.id), seeds, admit, studies.now())
    except GrowthError as error:
        raise _cannot_grow(studies, study, str(error)) from error
    except SpecError as error:
        raise bad_spec(error.problems) from error


def _cannot_grow(studies: _Studies, study: Study, detail: str) -> ApiError:
    state = state_of(studies.table.count_children([study.id])[study.id])
    return ApiError(409, "state_conflict", detail, extra={"state": state, "allowed": []})


@router.post("/{study_id}/cancel", status_code=202)
def cancel(study_id: str, studies: Studies, who: Submitter) -> StudyView:
    """Ask every unfinished job of the study to end."""
    return _apply_verb(studies, who, visible_study(studies.table, who, study_id), "cancel")


@router.post("/{study_id}/pause", status_code=202)
def pause(study_id: str, studies: Studies, who: Submitter) -> StudyView:
    """Ask every job that waits or trains to stop with a checkpoint. Jobs that already export continue to their end."""
    return _apply_verb(studies, who, visible_study(studies.table, who, study_id), "pause")


@router.post("/{study_id}/resume", status_code=202)
def resume(study_id: str, studies: Studies, who: Submitter) -> StudyView:
    """Put every paused job back into the queue."""
    return _apply_verb(studies, who, visible_study(studies.table, who, study_id), "resume")


@router.post("/{study_id}/retry", status_code=202)
def retry(study_id: str, studies: Studies, who: Submitter) -> StudyView:
    """Put every failed or cancelled job back into the queue."""
    return _apply_verb(studies, who, visible_study(studies.table, who, study_id), "retry")


def _apply_verb(studies: _Studies, who: Principal, study: Study, verb: Verb) -> StudyView:
    for job_id in studies.table.apply(study.id, verb, studies.now(), who.actor):
        studies.changed(job_id)
    return study_view(studies.mlflow_uri, study, studies.table.count_children([study.id])[study.id])


def study_view(mlflow_uri: str, study: Study, counts: Counts) -> StudyView:
    return StudyView(
        id=study.id,
        name=study.name,
        project=study.project,
        owner=study.owner,
        state=state_of(counts),
        jobs=counts,
        mlflow=MlflowView(run_id=study.run_id, url=run_page(mlflow_uri, study.experiment_id, study.run_id)),
        created_at=study.created_at,
        reported_at=study.reported_at,
        problem=study.problem,
    )
