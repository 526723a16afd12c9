"""What the API shows of jobs, attempts, events, logs and checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import to_json

from syncnorm.service.integrations.mlflow_runs import run_page
from syncnorm.service.jobs.actors import ActorKind
from syncnorm.service.jobs.job import Attempt, Job, JobState
from syncnorm.service.store import ListedJob, StoredEvent, StoredLine
from syncnorm.trainer.contract.failure import FailureReason, advised
from syncnorm.trainer.contract.protocol import RankPlacement


class View(BaseModel):
    """What is shown. Numbers that JSON has no form for are the words NaN, Infinity and -Infinity."""

    model_config = ConfigDict(ser_json_inf_nan="strings")


class NonFinite(StrEnum):
    """What stands for a number that JSON has no form for."""

    NAN = "NaN"
    INFINITY = "Infinity"
    MINUS_INFINITY = "-Infinity"


Number = float | NonFinite
"""A measured value, which may be anything."""


class ProgressView(View):
    """epoch and step count what is finished; percent and eta_s are null until the length of the run is known.

    eta_s is the remaining training time, and null unless the job is running.
    """

    epoch: int = 0
    epochs: int | None = None
    step: int = 0
    steps: int | None = None
    percent: float | None = None
    eta_s: float | None = None
    metrics: dict[str, Number] = {}


class MlflowView(View):
    run_id: str | None
    url: str | None


class ModelView(View):
    """The exported model. certificate: how far its answers are from the trained model's."""

    uri: str
    registered: str | None
    certificate: dict[str, Any]


class JobFields(View):
    """norm: the kind in use, also where the spec says auto. workers: how many the spec asks for. world_size: how many
    the latest attempt has, null before."""

    id: str
    name: str
    project: str
    owner: str
    state: JobState
    reason: FailureReason | None
    message: str
    priority: int
    norm: str
    labels: dict[str, str]
    attempts: int
    workers: int
    world_size: int | None
    progress: ProgressView
    mlflow: MlflowView
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    version: int


class JobView(JobFields):
    """One job, with everything about it."""

    spec: dict[str, Any]
    model: ModelView | None


class ListedModelView(View):
    """The exported model. certificate: null, unless the list was asked for with full=true."""

    uri: str
    registered: str | None
    certificate: dict[str, Any] | None


class ListedJobView(JobFields):
    """A job in a list. spec: null, unless the list was asked for with full=true."""

    spec: dict[str, Any] | None
    model: ListedModelView | None


class JobPage(View):
    items: list[ListedJobView]
    next_cursor: str | None


class AttemptView(View):
    """phases: when each was first reported. placement: where each rank runs; empty until all have come. placed: how
    many ranks have a place. A page shows 1,024 of them, those of the latest attempts first."""

    id: str
    number: int
    workers: int
    outcome: str | None
    reason: FailureReason | None
    message: str
    step: int
    phase: str | None
    phases: dict[str, datetime]
    resume_from: str | None
    placement: list[RankPlacement]
    placed: int
    created_at: datetime
    submitted_at: datetime | None
    heartbeat_at: datetime | None
    ended_at: datetime | None
    released_at: datetime | None


class AttemptPage(View):
    items: list[AttemptView]
    next_cursor: str | None = None


class ActorView(View):
    """Who did it: a user (owner, and the token they showed; null where authentication is off), the service, or the
    workers of an attempt."""

    kind: ActorKind
    owner: str | None
    token_id: str | None


class EventView(View):
    """actor, request_id: null in events from before they were recorded; request_id also where no request asked."""

    seq: int
    at: datetime
    kind: str
    message: str
    data: dict[str, Any]
    actor: ActorView | None
    request_id: str | None


class EventPage(View):
    items: list[EventView]
    next_cursor: str | None


class LineView(View):
    """rank -1 is the driver."""

    id: int
    attempt: int
    rank: int
    seq: int
    at: str
    level: str
    text: str


class LinePage(View):
    items: list[LineView]
    next_cursor: str | None


def job_view(job: Job, mlflow_uri: str) -> JobView:
    labels = {str(name): str(value) for name, value in job.labels.items()}
    model = _read(ModelView, job.model) if job.model else None
    return JobView(**_shown(job, mlflow_uri), labels=labels, spec=job.spec.document, model=model)


def job_text(listed: ListedJob, mlflow_uri: str) -> str:
    """A ListedJobView as JSON. What is kept as JSON is put in as it is: reading and writing it is most of a list."""
    model = listed.model and {"certificate": None, **listed.model}
    if model and listed.spec is None:
        model["certificate"] = None
    shown = _shown(listed, mlflow_uri) | {"model": _read(ListedModelView, model) if model else None}
    return f'{to_json(shown).decode()[:-1]},"labels":{listed.labels},"spec":{listed.spec or "null"}}}'


def _shown(job: Job | ListedJob, mlflow_uri: str) -> dict[str, Any]:
    """The fields of a JobView, but for labels, spec and model."""
    return {
        "id": job.id,
        "name": job.name,
        "project": job.project,
        "owner": job.owner,
        "state": job.state,
        "reason": job.reason,
        "message": _message(job),
        "priority": job.priority,
        "norm": job.norm,
        "attempts": job.attempt,
        "workers": job.workers,
        "world_size": job.world_size,
        "progress": _progress(job),
        "mlflow": MlflowView(run_id=job.run_id, url=run_page(mlflow_uri, job.experiment_id, job.run_id)),
        "created_at": job.created_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "version": job.version,
    }


def _progress(job: Job | ListedJob) -> ProgressView:
    """The last progress report; how long it will take is known of a running job only."""
    if not job.progress:
        return _NO_PROGRESS
    shown = _read(ProgressView, job.progress) or _NO_PROGRESS
    if job.state == JobState.RUNNING:
        return shown
    percent = 100.0 if job.state == JobState.SUCCEEDED else shown.percent
    return shown.model_copy(update={"eta_s": None, "percent": percent})


_MOST_PLACES = 1024
_NO_PROGRESS = ProgressView()
_View = TypeVar("_View", bound=BaseModel)


def _read(kind: type[_View], stored: Any) -> _View | None:
    """None for what an older or newer version stored in another form: the rest of the job is shown all the same."""
    try:
        return kind.model_validate(stored)
    except ValidationError:
        return None


def _message(job: Job | ListedJob) -> str:
    """What happened, and whose turn it is."""
    if not job.reason or job.state != JobState.FAILED:
        return job.message
    return advised(job.message, FailureReason(job.reason))


def attempt_views(attempts: Sequence[Attempt]) -> list[AttemptView]:
    """In their order; where they have very many ranks in all, those of the latest attempts are shown."""
    left, views = _MOST_PLACES, []
    for attempt in reversed(attempts):
        places = attempt.placement or []
        views.append(_attempt_view(attempt, places[:left]))
        left -= min(left, len(places))
    return views[::-1]


def _attempt_view(attempt: Attempt, places: Sequence[Any]) -> AttemptView:
    values = {name: getattr(attempt, name) for name in AttemptView.model_fields if name != "placed"}
    placed = len(attempt.placement or [])
    shown = [place for item in places if (place := _read(RankPlacement, item))]
    return AttemptView(**values | {"phases": attempt.phases or {}, "placement": shown, "placed": placed})


def event_view(event: StoredEvent) -> EventView:
    by = event.by
    return EventView(
        seq=event.seq,
        at=event.at,
        kind=event.kind,
        message=event.message,
        data=event.data or {},
        actor=ActorView(kind=by.kind, owner=by.owner, token_id=by.token_id) if by else None,
        request_id=event.request_id,
    )


def line_view(line: StoredLine) -> LineView:
    return LineView(**vars(line))
