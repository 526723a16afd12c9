"""/v1/jobs/{id}/…: explain, attempts and statistics, and how to change or delete a job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from syncnorm.service.api.components import Components, JobChanges
from syncnorm.service.api.dependencies import Reader, Submitter, provide, visible_job
from syncnorm.service.api.http.errors import ApiError, refused
from syncnorm.service.api.http.etags import check_match
from syncnorm.service.api.http.route import Route
from syncnorm.service.api.resources.jobs import shown
from syncnorm.service.api.resources.verbs import conflict
from syncnorm.service.api.views.attempt_view import AttemptPage, attempt_views
from syncnorm.service.api.views.job_view import JobView
from syncnorm.service.api.views.view import Number, View
from syncnorm.service.integrations.mlflow_runs import Tracker, TrackingUnreachableError
from syncnorm.service.jobs.actions import CHANGEABLE_LIMITS, allowed
from syncnorm.service.jobs.job import Job
from syncnorm.service.reconciler.reconciler import Reconciler
from syncnorm.service.scheduling.explanation import explain
from syncnorm.service.store.tables.attempts import AttemptTable
from syncnorm.service.store.tables.exports import ExportTable
from syncnorm.service.store.tables.jobs import JobTable
from syncnorm.service.store.tables.set_aside import SetAsideTable
from syncnorm.trainer.contract.mlflow_rest import EARLIER_LAYERS, LAYERS, read_layer_metric
from syncnorm.trainer.contract.protocol import attempt_id
from syncnorm.trainer.contract.spec import Label, LabelName, LimitsSpec
from syncnorm.trainer.contract.text import name_some

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["jobs"], route_class=Route)
_OF_LAYERS = (f"{LAYERS}/", f"{EARLIER_LAYERS}/")


@dataclass(frozen=True)
class _Details:
    jobs: JobTable
    attempts: AttemptTable
    exports: ExportTable
    set_aside: SetAsideTable
    reconciler: Reconciler
    tracker: Tracker
    changed: JobChanges
    mlflow_uri: str


def _details(parts: Components) -> _Details:
    store = parts.store
    return _Details(
        store.jobs,
        store.attempts,
        store.exports,
        store.set_aside,
        parts.reconciler,
        parts.tracker,
        parts.job_changes,
        parts.mlflow_uri,
    )


Details = Annotated[_Details, Depends(provide(_details))]


class ExplanationView(View):
    """Why the job is where it is: why it waits, runs or stopped."""

    code: str
    """The reason as a word for programs; it does not change between versions."""
    message: str
    """The reason in a sentence."""
    shortfall: dict[str, float]
    """Numbers behind the reason, such as how much capacity is missing."""
    jobs_ahead: int
    """Queued jobs that go first."""
    blockers: list[str]
    """Ids of the jobs in the way."""
    estimated_start: datetime | None
    """When it is expected to start; null where that can't be known."""


class StatisticsPoint(View):
    """Running statistics of one layer at one step."""

    step: int
    """Optimizer step of the record."""
    running_mean_abs: Number | None = None
    """Mean of |running_mean| over channels."""
    running_var_mean: Number | None = None
    """Mean of running_var over channels."""
    drift: Number | None = None
    """How far the batch mean is from the running mean, in standard deviations."""


class PopulationView(View):
    """Statistics of one layer over the whole training set."""

    mean_abs: Number
    """Mean of |mean| over channels."""
    var_mean: Number
    """Mean of var over channels."""
    drift: Number
    """How far the running mean was from the population mean, in standard deviations."""


class LayerStatistics(View):
    """Running statistics of one normalization layer over training."""

    layer: str
    """Module path of the layer."""
    points: list[StatisticsPoint]
    """A record for each recorded step, in order."""
    population: PopulationView | None
    """Statistics over the training set; null until training is over, or if statistics.population is none."""
    population_drift: Number | None
    """The same as population.drift; null until training is over."""


class StatisticsPage(View):
    """Running statistics of all layers."""

    items: list[LayerStatistics]
    """The layers."""
    next_cursor: str | None = None
    """Always null: all of them are on this page."""


IfMatch = Annotated[
    str | None,
    Header(alias="If-Match", min_length=1, description='ETag of the job as you know it, such as "7", or * for any.'),
]


class JobPatch(BaseModel):
    """What you want to change. null, or a field left out, changes nothing."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)

    priority: Annotated[int, Field(ge=-100, le=100)] | None = None
    """The new priority. It counts from the next scheduling on. Default: null, no change."""
    labels: Annotated[dict[LabelName, Label], Field(max_length=32)] | None = None
    """The new labels; they replace all of the old ones at once. Default: null, no change."""
    limits: LimitsSpec | None = None
    """Limits to change, while the job is queued, paused or failed; those you leave out stay. `deadline_s: null` removes
    the deadline. They apply to the next attempt. Default: null, no change."""


@router.get("/attempts")
def get_attempts(job_id: str, details: Details, who: Reader) -> AttemptPage:
    """All attempts of a job, the first one first."""
    visible_job(details.jobs, who, job_id)
    return AttemptPage(items=attempt_views(details.attempts.of_job(job_id)))


@router.get("/explain")
def get_explanation(job_id: str, details: Details, who: Reader) -> ExplanationView:
    """Why a job waits, runs or stopped, who is ahead of it, and when it is expected to start."""
    job = visible_job(details.jobs, who, job_id)
    return explanation(job, details.attempts, details.reconciler)


def explanation(job: Job, attempts: AttemptTable, reconciler: Reconciler) -> ExplanationView:
    """Counts the jobs ahead as the latest tick has seen them."""
    ahead = reconciler.queue.ahead(job)
    attempt = attempts.get(attempt_id(job.id, job.attempt)) if job.attempt else None
    schedule = reconciler.schedule if reconciler.view else None
    problem = reconciler.backends.storage.problem
    return ExplanationView(**vars(explain(job, attempt, schedule, ahead, problem, reconciler.problems(job.id))))


@router.get("/statistics")
def get_statistics(job_id: str, details: Details, who: Reader) -> StatisticsPage:
    """Running statistics of every norm layer over steps, as MLflow has them."""
    job = visible_job(details.jobs, who, job_id)
    try:
        histories = details.tracker.histories(job.run_id, _OF_LAYERS) if job.run_id else {}
    except TrackingUnreachableError as error:
        raise ApiError(503, "mlflow_unreachable", str(error), headers={"Retry-After": "5"}) from error
    layers: dict[str, dict[int, dict[str, float]]] = {}
    for key, points in histories.items():
        layer, what = read_layer_metric(key)
        if layer and what in StatisticsPoint.model_fields:
            for step, value in points:
                layers.setdefault(layer, {}).setdefault(step, {})[what] = value
    facts = _population_facts(job)
    items = [
        LayerStatistics(
            layer=layer,
            points=[StatisticsPoint(step=step, **values) for step, values in sorted(steps.items())],
            population=_population(facts, layer),
            population_drift=facts["drift"].get(layer) if "drift" in facts else None,
        )
        for layer, steps in layers.items()
    ]
    return StatisticsPage(items=items)


def _population_facts(job: Job) -> dict[str, dict[str, Any]]:
    """By name, then by layer; of what another version stored in another form, or a damaged row holds, nothing."""
    found: Any = job.model
    for part in ("certificate", "population"):
        found = found.get(part) if isinstance(found, dict) else None
    return {name: value for name, value in found.items() if isinstance(value, dict)} if isinstance(found, dict) else {}


def _population(facts: Mapping[str, Any], layer: str) -> PopulationView | None:
    """None also for jobs that ended before certificates had these numbers."""
    found = {name: facts.get(name, {}).get(layer) for name in PopulationView.model_fields}
    return None if None in found.values() else PopulationView.model_validate(found)


@router.patch("", response_model=JobView, responses=refused(409, 412, 428))
def patch_job(
    job_id: str, body: JobPatch, request: Request, details: Details, who: Submitter, if_match: IfMatch = None
) -> Response:
    """Change priority, labels or limits. Send If-Match with the ETag that your change is based on. A body that changes
    nothing makes no new version."""
    job = visible_job(details.jobs, who, job_id)
    if not if_match:
        raise ApiError(
            428,
            "precondition_required",
            "Send If-Match with the ETag of the job that you last read, or * for any version.",
        )
    check_match(request, job)
    moved = details.jobs.change(job, _changes(job, body), who.actor)
    if moved is None:
        raise ApiError(
            412, "precondition_failed", "The job changed at the same moment. Read it again, then repeat the change."
        )
    details.changed(job.id)
    return shown(moved, details.mlflow_uri)


def _changes(job: Job, body: JobPatch) -> dict[str, Any]:
    """Raises: ApiError 409 if the limits can't change in this state."""
    changes: dict[str, Any] = {
        name: value for name, value in (("priority", body.priority), ("labels", body.labels)) if value is not None
    }
    given = body.limits.model_dump(mode="json", include=body.limits.model_fields_set) if body.limits else {}
    if given and job.state not in CHANGEABLE_LIMITS:
        states = ", ".join(CHANGEABLE_LIMITS)
        detail = f"Job {job.id} is {job.state}; its limits can change while it is one of: {states}."
        raise ApiError(409, "state_conflict", detail, extra={"state": job.state, "allowed": allowed(job)})
    return changes | ({"limits": job.spec.limits | given} if given else {})


@router.delete("", status_code=204, responses=refused(409, 412))
def delete_job(job_id: str, request: Request, details: Details, who: Submitter, if_match: IfMatch = None) -> None:
    """Delete a finished job with its events and logs. Its files on the storage follow soon; its MLflow run stays.

    Refused while a job that starts from its weights has yet to read them. With If-Match, only if the job has not
    changed since.
    """
    del if_match  # read from the request, because the header may appear several times
    job = visible_job(details.jobs, who, job_id)
    check_match(request, job)
    if not job.is_terminal:
        raise conflict(job, "delete")
    if waiting := details.jobs.to_start_from(job.id):
        raise _still_needed(job, waiting)
    if details.jobs.delete(job, who.actor):
        return
    # What is shown of a row that can't be read is not what is stored: it is put right first.
    mended = details.set_aside.unreadable_job(job.id)
    if mended is None or not details.jobs.delete(mended, who.actor):
        raise _still_busy(details, job)


def _still_needed(job: Job, waiting: Sequence[str]) -> ApiError:
    detail = (
        f"Job {job.id} can't be deleted yet, because {name_some(waiting)} will start from its weights "
        "(model.init_from). Delete it once they train, or cancel them."
    )
    return ApiError(409, "state_conflict", detail, extra={"state": job.state, "allowed": []})


def _still_busy(details: _Details, job: Job) -> ApiError:
    exports = [f"export {one.name}" for one in details.exports.of_job(job.id) if one.released_at is None]
    attempts = [f"attempt {one.number}" for one in details.attempts.of_job(job.id) if one.released_at is None]
    busy = " and ".join([*attempts, *exports]) or "one of its attempts"
    detail = f"Job {job.id} is {job.state}, but {busy} still runs on the cluster. Delete the job once that has ended."
    return ApiError(409, "state_conflict", detail, extra={"state": job.state, "allowed": []})
