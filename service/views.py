"""What the API shows of jobs, attempts, events, logs and checkpoints."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_json

from service.jobs import Attempt, Job, JobState
from service.store import Listed, StoredEvent, StoredLine
from service.tracking import run_page
from trainer.attempt import RankPlace
from trainer.failure import FailureReason, advised


class ProgressView(BaseModel):
    """epoch and step count what is finished; percent and eta_s are null until the length of the run is known."""

    epoch: int = 0
    epochs: int | None = None
    step: int = 0
    steps: int | None = None
    percent: float | None = None
    eta_s: float | None = None
    metrics: dict[str, float] = {}


class MlflowView(BaseModel):
    run_id: str | None
    url: str | None


class ModelView(BaseModel):
    """The exported model. certificate: how far its answers are from the trained model's."""

    uri: str
    registered: str | None
    certificate: dict[str, Any]


class JobView(BaseModel):
    """norm: the kind in use, also where the spec says auto. world_size: workers of the latest attempt, null before."""

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
    spec: dict[str, Any]
    attempts: int
    world_size: int | None
    progress: ProgressView
    mlflow: MlflowView
    model: ModelView | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    version: int


class JobPage(BaseModel):
    items: list[JobView]
    next_cursor: str | None


class AttemptView(BaseModel):
    """phases: when each was first reported. placement: where each rank runs; empty until all have come."""

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
    placement: list[RankPlace]
    created_at: datetime
    submitted_at: datetime | None
    heartbeat_at: datetime | None
    ended_at: datetime | None
    released_at: datetime | None


class AttemptPage(BaseModel):
    items: list[AttemptView]
    next_cursor: str | None = None


class EventView(BaseModel):
    seq: int
    at: datetime
    kind: str
    message: str
    data: dict[str, Any]


class EventPage(BaseModel):
    items: list[EventView]
    next_cursor: str | None


class LineView(BaseModel):
    """rank -1 is the driver."""

    id: int
    attempt: int
    rank: int
    seq: int
    at: str
    level: str
    text: str


class LinePage(BaseModel):
    items: list[LineView]
    next_cursor: str | None


def job_view(job: Job, mlflow_uri: str) -> JobView:
    return JobView(**_shown(job, mlflow_uri), labels=job.labels, spec=job.spec)


def job_text(listed: Listed, mlflow_uri: str) -> str:
    """The view of a job as JSON. What is kept as JSON is put in as it is: reading and writing it is most of a list."""
    rest = to_json(_shown(listed, mlflow_uri)).decode()
    return f'{rest[:-1]},"labels":{listed.labels},"spec":{listed.spec}}}'


def _shown(job: Job | Listed, mlflow_uri: str) -> dict[str, Any]:
    """The fields of a JobView, but for labels and spec."""
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
        "world_size": job.world_size,
        "progress": ProgressView.model_validate(job.progress) if job.progress else _NO_PROGRESS,
        "mlflow": MlflowView(run_id=job.run_id, url=run_page(mlflow_uri, job.experiment_id, job.run_id)),
        "model": ModelView.model_validate(job.model) if job.model else None,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "version": job.version,
    }


_NO_PROGRESS = ProgressView()


def _message(job: Job | Listed) -> str:
    """What happened, and whose turn it is."""
    if not job.reason or job.state != JobState.FAILED:
        return job.message
    return advised(job.message, FailureReason(job.reason))


def attempt_view(attempt: Attempt) -> AttemptView:
    values = {name: getattr(attempt, name) for name in AttemptView.model_fields}
    return AttemptView(**values | {"phases": attempt.phases or {}, "placement": attempt.placement or []})


def event_view(event: StoredEvent) -> EventView:
    return EventView(seq=event.seq, at=event.at, kind=event.kind, message=event.message, data=event.data or {})


def line_view(line: StoredLine) -> LineView:
    return LineView(**vars(line))
