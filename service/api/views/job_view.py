"""The JSON form of jobs."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic_core import to_json

from syncnorm.service.api.views.view import Number, View, read
from syncnorm.service.integrations.mlflow_experiment import run_page
from syncnorm.service.jobs.export_summary import export_summary
from syncnorm.service.jobs.job import Job, JobState
from syncnorm.service.store import ListedJob
from syncnorm.trainer.contract.failure import FailureReason, advised
from syncnorm.trainer.contract.plan import Guarantees
from syncnorm.trainer.contract.protocol import ExportState


class ProgressView(View):
    """Training progress as last reported. All of it counts finished epochs and steps."""

    epoch: int = 0
    """Finished epochs."""
    epochs: int | None = None
    """Epochs in all; null if the job counts by steps."""
    step: int = 0
    """Finished optimizer steps."""
    steps: int | None = None
    """Optimizer steps in all; null until the length of the training set is known."""
    percent: float | None = None
    """Share of the steps that are finished, 0 to 100; null until their number is known."""
    eta_s: float | None = None
    """Estimated remaining training time in seconds; null unless the job is running and its length is known."""
    metrics: dict[str, Number] = {}
    """Latest value of each metric, by its name in MLflow."""


class MlflowView(View):
    """The MLflow run."""

    run_id: str | None
    """Id of the run; null until it is created."""
    url: str | None
    """The run's page in MLflow; null until it is created."""


class ModelView(View):
    """The exported model."""

    uri: str | None
    """Where MLflow serves the model from, such as `models:/m-…`; null where MLflow has no form for its inputs and
    outputs, and only its files are in the run."""
    registered: str | None
    """Name and version in the model registry, such as `digits/3`; null if export.register_as was not given."""
    certificate: dict[str, Any]
    """How far the answers of each exported form are from the trained model's, with digests of all files."""


class JobExportView(View):
    """How the export of a job went. The job has succeeded whatever it is: its trained weights are in the run."""

    state: ExportState
    """`certified`: the exported model answers as the trained one. `failed` or `skipped`: there is none, for `reason`.
    `running`: it is being made."""
    reason: str | None
    """export_mismatch, not_exportable, no_forward, inputs_unclear, layers_outside, or a reason that a job may fail for;
    null if nothing went wrong."""
    message: str
    """What happened, and what you can change. Empty if there is nothing to say."""
    name: str
    """The export that is meant: `1` is the job's own. One that you asked for later stands in for it, if it did not give
    a certified model."""


class JobFields(View):
    """What every view of a job shows."""

    id: str
    """Id of the job."""
    name: str
    """The spec's name; it need not be unique."""
    project: str
    """The spec's project, which is the MLflow experiment."""
    owner: str
    """Who submitted the job: the owner of the token."""
    state: JobState
    """Where the job is in its life."""
    reason: FailureReason | None
    """Why the latest attempt failed or the job ended; null if nothing failed."""
    message: str
    """What happened, and for a failed job what to do. Empty if there is nothing to say."""
    priority: int
    """Place in the queue: higher goes first."""
    norm: str
    """The normalization in use, also where the spec says auto."""
    labels: dict[str, str]
    """Your labels, and `study` for a job of a study."""
    attempts: int
    """How many attempts there were, the current one included."""
    workers: int
    """How many workers the spec asks for."""
    world_size: int | None
    """The number of workers of the latest attempt, and once it has changed, the history with its steps."""
    progress: ProgressView
    """Training progress as last reported."""
    mlflow: MlflowView
    """The job's run in MLflow."""
    export: JobExportView | None
    """How its export went; null before training is over."""
    created_at: datetime
    """When the job was submitted."""
    started_at: datetime | None
    """When the first attempt began to train; a retry counts anew. null before."""
    finished_at: datetime | None
    """When the job succeeded, failed or was cancelled; null before."""
    version: int
    """Counts the changes of the job. It is the ETag for If-Match."""


class JobView(JobFields):
    """One job, with everything about it."""

    spec: dict[str, Any]
    """The whole spec, defaults included."""
    model: ModelView | None
    """The exported model; null before the job succeeded."""
    guarantees: Guarantees | None
    """What holds for this job, and why, as its latest attempt has found it; null before the first one trains."""


class ListedModelView(View):
    """The exported model, in a list."""

    uri: str | None
    """Where MLflow serves the model from, such as `models:/m-…`; null where MLflow has no form for its inputs and
    outputs."""
    registered: str | None
    """Name and version in the model registry; null if export.register_as was not given."""
    certificate: dict[str, Any] | None
    """How far the answers of each exported form are from the trained model's; null unless you asked for the list with
    full=true."""


class ListedJobView(JobFields):
    """A job in a list."""

    spec: dict[str, Any] | None
    """The whole spec, defaults included; null unless you asked for the list with full=true."""
    model: ListedModelView | None
    """The exported model; null before the job succeeded."""
    guarantees: Guarantees | None
    """What holds for this job; null before it trains, and unless you asked for the list with full=true."""


class JobPage(View):
    """A page of jobs."""

    items: list[ListedJobView]
    """The jobs, in the order you asked for."""
    next_cursor: str | None
    """Send it as `cursor` to get the next page. null: this is the last page."""


def job_view(job: Job, mlflow_uri: str) -> JobView:
    labels = {str(name): str(value) for name, value in job.labels.items()}
    model = read(ModelView, job.model) if job.model else None
    return JobView(
        **_shown(job, mlflow_uri),
        labels=labels,
        spec=job.spec.document,
        model=model,
        guarantees=read(Guarantees, job.guarantees) if job.guarantees else None,
    )


def job_text(listed: ListedJob, mlflow_uri: str) -> str:
    """A ListedJobView as JSON. Columns that hold JSON are inserted as they are, because parsing and writing them would
    be most of the work."""
    shown = to_json(_listed(listed, mlflow_uri)).decode()
    return f'{shown[:-1]},"labels":{listed.labels},"spec":{listed.spec or "null"}}}'


def listed_view(listed: ListedJob, mlflow_uri: str) -> ListedJobView:
    """The same as a value, without labels and spec, which are passed on unread."""
    return ListedJobView(**_listed(listed, mlflow_uri), labels={}, spec=None)


def _listed(listed: ListedJob, mlflow_uri: str) -> dict[str, Any]:
    """The fields of a ListedJobView, but for labels and spec."""
    model = listed.model and {"certificate": None, **listed.model}
    if model and listed.spec is None:
        model["certificate"] = None
    return _shown(listed, mlflow_uri) | {
        "model": read(ListedModelView, model) if model else None,
        "guarantees": read(Guarantees, listed.guarantees) if listed.guarantees else None,
    }


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
        "export": _export(job),
        "created_at": job.created_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "version": job.version,
    }


def _export(job: Job | ListedJob) -> JobExportView | None:
    summary = export_summary(job)
    return JobExportView(**vars(summary)) if summary else None


def _progress(job: Job | ListedJob) -> ProgressView:
    """The last progress report; only a running job has an estimate."""
    if not job.progress:
        return _NO_PROGRESS
    shown = read(ProgressView, job.progress) or _NO_PROGRESS
    if job.state == JobState.RUNNING:
        return shown
    percent = 100.0 if job.state == JobState.SUCCEEDED else shown.percent
    return shown.model_copy(update={"eta_s": None, "percent": percent})


_NO_PROGRESS = ProgressView()


def _message(job: Job | ListedJob) -> str:
    """What happened, and for a failed job who has to act."""
    if not job.reason or job.state != JobState.FAILED:
        return job.message
    return advised(job.message, FailureReason(job.reason))
