"""/v1/jobs/{id}/exports: the exports of a finished job, and new ones in other formats."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Response
from pydantic import BaseModel, ValidationError
from pydantic_core import to_json

from syncnorm.service.api.components import Components, JobChanges
from syncnorm.service.api.dependencies import Reader, Submitter, provide, visible_job
from syncnorm.service.api.http.errors import ApiError, bad_spec, not_found, refused
from syncnorm.service.api.http.json_body import Json
from syncnorm.service.api.http.route import Route
from syncnorm.service.api.resources.jobs import Key, reused_key
from syncnorm.service.api.views.job_view import ListedModelView
from syncnorm.service.api.views.view import View
from syncnorm.service.jobs.export_summary import OWN, ExportSummary, stored_summary
from syncnorm.service.jobs.exports.export import Export, ExportState
from syncnorm.service.jobs.job import Job, JobState
from syncnorm.service.store import AddOutcome, StoredResponse
from syncnorm.service.store.tables.exports import ExportTable
from syncnorm.service.store.tables.history import HistoryTable
from syncnorm.service.store.tables.jobs import JobTable
from syncnorm.trainer.contract.failure import advised
from syncnorm.trainer.contract.spec import ExportSpec
from syncnorm.trainer.contract.spec_reader import export_problems, read_export
from syncnorm.trainer.errors import Problem, SpecError

ExportName = Annotated[str, Path(description="`1` is the job's own export; later ones count up.")]
router = APIRouter(prefix="/v1/jobs/{job_id}/exports", tags=["jobs"], route_class=Route)


@dataclass(frozen=True)
class _Exports:
    jobs: JobTable
    table: ExportTable
    history: HistoryTable
    changed: JobChanges
    max_unfinished: int


def _exports(parts: Components) -> _Exports:
    store = parts.store
    return _Exports(store.jobs, store.exports, store.history, parts.job_changes, parts.settings.max_queued)


Exports = Annotated[_Exports, Depends(provide(_exports))]
_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ExportSpec"}}},
    }
}


class ExportView(View):
    """An export of a succeeded job. What exists only after success is null before."""

    name: str
    """`1` is the job's own export; later ones count up."""
    state: ExportState
    """Where the export is in its life."""
    reason: str | None
    """Why its latest start failed, one of the reasons that a job may fail for; of the job's own export also
    not_exportable, no_forward, inputs_unclear or layers_outside. null otherwise."""
    message: str
    """What happened, and after a failure what to do."""
    export: dict[str, Any]
    """The `export` section of a spec it was made from."""
    path: str
    """Folder of its files among the run's artifacts."""
    uri: str | None
    """Where MLflow serves the model from; null also where MLflow has no form for its inputs and outputs."""
    registered: str | None
    """Name and version in the model registry; null if export.register_as was not given."""
    passed: bool | None
    """Whether every exported form answers as the trained model does."""
    files: dict[str, str]
    """SHA-256 of each file, by name."""
    certificate: dict[str, Any] | None
    """How far the answers of each exported form are from the trained model's."""
    starts: int
    """How often it was started: more than once if a start was lost."""
    created_at: datetime
    """When you asked for it."""
    started_at: datetime | None
    """When it was first started; null before."""
    finished_at: datetime | None
    """When it succeeded or failed; null before."""


class ExportPage(View):
    """All exports of a job."""

    items: list[ExportView]
    """The exports, the job's own first."""
    next_cursor: str | None = None
    """Always null: all of them are on this page."""


@router.post("", status_code=201, response_model=ExportView, responses=refused(409), openapi_extra=_BODY)
def export_again(job_id: str, body: Json, exports: Exports, who: Submitter, key: Key = None) -> Response:
    """Export a succeeded job again, from its published weights or those of a checkpoint. The body is the `export`
    section of a spec."""
    job = visible_job(exports.jobs, who, job_id)
    section = _as_before(_read(body.value), job)
    if job.state is not JobState.SUCCEEDED:
        detail = f"Job {job.id} is {job.state}; only succeeded jobs can be exported."
        raise ApiError(409, "state_conflict", detail, extra={"state": job.state, "allowed": [JobState.SUCCEEDED]})
    if wrong := list(_problems(job, section, exports.history)):
        raise bad_spec(wrong)
    digest = hashlib.sha256(f"{job.id} {body.digest}".encode()).hexdigest()
    found = exports.table.add(
        job,
        section.model_dump(mode="json"),
        lambda export: StoredResponse(digest, later_view(export).model_dump(mode="json")),
        None if key is None else (who.name, key),
        exports.max_unfinished,
        who.actor,
    )
    if found is None:
        raise not_found("job", job_id)
    if isinstance(found, AddOutcome):
        detail = (
            f"{job.owner} has reached the limit of {exports.max_unfinished} unfinished exports. Wait for some to "
            "finish."
        )
        raise ApiError(429, "too_many_exports", detail, headers={"Retry-After": "60"})
    if isinstance(found, StoredResponse):
        if found.request_hash != digest:
            raise reused_key("export")
        return _created(job, found.answer, {"Idempotency-Replayed": "true"})
    exports.changed(job.id)
    return _created(job, later_view(found).model_dump(mode="json"), {})


def _read(value: Any) -> ExportSpec:
    try:
        return read_export(value)
    except SpecError as error:
        raise bad_spec(error.problems) from error


def _as_before(section: ExportSpec, job: Job) -> ExportSpec:
    """Where the request names no checkpoint, it means the one that the job itself exported."""
    own = job.spec.value
    if own is None or "checkpoint" in section.model_fields_set:
        return section
    return section.model_copy(update={"checkpoint": own.export.checkpoint})


def _problems(job: Job, section: ExportSpec, history: HistoryTable) -> Iterator[Problem]:
    """What keeps this job from being exported so."""
    if job.spec.value is not None:
        yield from export_problems(section, job.spec.value)
    if isinstance(section.checkpoint, int):
        steps = sorted({checkpoint.step for checkpoint in history.checkpoints(job.id)})
        if section.checkpoint not in steps:
            there = ", ".join(map(str, steps)) or "none"
            text = f"the job has no checkpoint of step {section.checkpoint}; it has one of {there}"
            yield Problem("checkpoint", text)


def _created(job: Job, content: dict[str, Any], headers: dict[str, str]) -> Response:
    location = {"Location": f"/v1/jobs/{job.id}/exports/{content['name']}"}
    return Response(to_json(content, inf_nan_mode="strings"), 201, location | headers, "application/json")


@router.get("")
def list_exports(job_id: str, exports: Exports, who: Reader) -> ExportPage:
    """All exports of a job, in order. Empty before the job has succeeded."""
    job = visible_job(exports.jobs, who, job_id)
    first = [first_view(job)] if _own(job) else []
    return ExportPage(items=first + [later_view(export) for export in exports.table.of_job(job_id)])


@router.get("/{name}")
def get_export(job_id: str, name: ExportName, exports: Exports, who: Reader) -> ExportView:
    """One export of a job."""
    job = visible_job(exports.jobs, who, job_id)
    if name == OWN and _own(job):
        return first_view(job)
    export = exports.table.get(job_id, name)
    if export is None:
        raise not_found("export", name)
    return later_view(export)


def first_view(job: Job) -> ExportView:
    """The job's own export."""
    own = _own(job)
    return ExportView(
        name=OWN,
        state=_OWN_STATES[own.state] if own else ExportState.SUCCEEDED,
        reason=own.reason if own else None,
        message=own.message if own else "",
        export=_section(job),
        path="export",
        starts=1,
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
        **_of_model(job.model if own is None or own.state == "certified" else None),
    )


_OWN_STATES = {
    "certified": ExportState.SUCCEEDED,
    "failed": ExportState.FAILED,
    "skipped": ExportState.SKIPPED,
}


def _own(job: Job) -> ExportSummary | None:
    """How the export of its own attempt ended, also where a later one stands in for it."""
    result = job.export and job.export.get("own", job.export)
    return stored_summary(result) or (ExportSummary("certified") if job.model else None)


def later_view(export: Export) -> ExportView:
    message = export.message
    if export.reason and export.state is ExportState.FAILED:
        message = advised(message, export.reason)
    return ExportView(
        name=export.name,
        state=export.state,
        reason=export.reason,
        message=message,
        export=export.section,
        path=f"exports/{export.name}",
        starts=export.starts,
        created_at=export.created_at,
        started_at=export.started_at,
        finished_at=export.finished_at,
        **_of_model(export.model),
    )


class _Certificate(BaseModel):
    """What is shown of a certificate apart."""

    passed: bool = True
    files: dict[str, str] = {}


_NO_MODEL: dict[str, Any] = {"uri": None, "registered": None, "passed": None, "files": {}, "certificate": None}


def _of_model(model: dict[str, Any] | None) -> dict[str, Any]:
    """What another version stored in another form, or a damaged row holds, is left out."""
    if model is None:
        return _NO_MODEL
    try:
        shown = ListedModelView.model_validate({"registered": None, "certificate": None, **model})
        return shown.model_dump() | _Certificate.model_validate(shown.certificate or {}).model_dump()
    except ValidationError:
        return _NO_MODEL


def _section(job: Job) -> dict[str, Any]:
    try:
        return job.spec.export.model_dump(mode="json")
    except Exception:  # of whatever kind: a spec that can't be read
        return {}
