"""Finds or creates the MLflow run of a job, describes it, and sets its status. Plain REST with short time limits."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from pydantic import TypeAdapter

from syncnorm.service.backend_errors import RefusedError, UnreachableError
from syncnorm.service.integrations.http_client import TOTAL_S, HttpClient, HttpRequest
from syncnorm.service.integrations.mlflow_answers import (
    EXPERIMENT_FOUND,
    EXPERIMENT_MADE,
    GONE,
    HISTORY,
    OBJECT,
    RUN_FOUND,
    RUN_UPDATED,
    RUNS_FOUND,
    read,
)
from syncnorm.service.integrations.mlflow_experiment import KIND_TAG, experiment_tags, run_page
from syncnorm.service.integrations.mlflow_model_tags import model_request, tags_in
from syncnorm.service.integrations.mlflow_run_facts import Pairs, run_params, run_tags, world_size_tags
from syncnorm.service.jobs.job import Attempt, Job
from syncnorm.trainer.contract.mlflow_rest import mlflow_account
from syncnorm.trainer.contract.text import storable

logger = logging.getLogger(__name__)
T = TypeVar("T")

_NOTE = "mlflow.note.content"
_MAX_NOTE = 8000
_ENDED = ("FINISHED", "FAILED", "KILLED")
_A_REQUEST = 100
"""MLflow's limit of params for one log-batch request (mlflow 3.17)."""
_HEALTH_S = 2.0
_HISTORIES_S, _AT_ONCE = 30.0, 8
_BYTES_A_SECOND = 2**20

TrackingUnreachableError = UnreachableError
"""Raised by every method while MLflow is unavailable."""


@dataclass(frozen=True)
class Run:
    experiment_id: str
    run_id: str


class Tracker(Protocol):
    """Port to MLflow. Methods raise UnreachableError while it is unavailable, and RefusedError for requests it
    refuses."""

    def run_for(self, job: Job, attempts: Sequence[Attempt], note: str) -> Run:
        """The run of the job, found by its tag; created if there is none, or it was deleted. A few short calls.

        attempts: all of the job, in order. note: the description of the run.
        """

    def describe(self, run_id: str, job: Job, attempts: Sequence[Attempt]) -> list[str]:
        """Write the run's tags, and the spec as params; returns the names that MLflow refused. May take many calls."""

    def set_status(self, run_id: str, status: str, note: str) -> None:
        """note: its page; it is left out where MLflow won't take it."""

    def histories(self, run_id: str, prefixes: tuple[str, ...]) -> dict[str, list[tuple[int, float]]]:
        """(step, value) of every metric whose name has one of these prefixes."""

    def model_tags(self, uri: str) -> dict[str, str] | None:
        """Tags of a model, given as `models:/NAME/3`, `models:/NAME@ALIAS` or `models:/m-…`; None: there is none."""

    def is_answering(self) -> bool: ...


class MlflowTracker:
    """The MLflow adapter. Whatever MLflow answers, a call ends within TOTAL_S and raises what the port promises."""

    def __init__(self, uri: str, timeout_s: float = TOTAL_S) -> None:
        self.uri = uri.rstrip("/")
        self._http = HttpClient("MLflow", self.uri, auth=mlflow_account(), total_s=timeout_s)

    def run_for(self, job: Job, attempts: Sequence[Attempt], note: str) -> Run:
        if job.experiment_id is not None and (run_id := self._find(job.experiment_id, job)):
            return Run(job.experiment_id, run_id)
        experiment_id = self.experiment(job.project)
        return Run(experiment_id, self._find(experiment_id, job) or self._create(experiment_id, job, attempts, note))

    def describe(self, run_id: str, job: Job, attempts: Sequence[Attempt]) -> list[str]:
        tags, params = run_tags(job, attempts), run_params(job.spec.document)
        lost = [f"tag {name}" for name in self._log(run_id, "tags", tags)]
        for start in range(0, len(params), _A_REQUEST):
            lost += self._log(run_id, "params", params[start : start + _A_REQUEST])
        return lost

    def set_status(self, run_id: str, status: str, note: str) -> None:
        body: dict[str, Any] = {"run_id": run_id, "status": status}
        if status in _ENDED:
            body["end_time"] = _now_ms()
        self.read("POST", "runs/update", body, RUN_UPDATED)
        self._set_note(run_id, note)

    def _set_note(self, run_id: str, note: str) -> None:
        """The page of a run; one that MLflow won't take is left out, for the run says what matters without it."""
        try:
            self.call("POST", "runs/set-tag", {"run_id": run_id, "key": _NOTE, "value": storable(note, _MAX_NOTE)})
        except RefusedError as error:
            logger.warning(
                "MLflow refused the note of a run; the run keeps its old one",
                extra={"run": run_id, "error": str(error)},
            )

    def histories(self, run_id: str, prefixes: tuple[str, ...]) -> dict[str, list[tuple[int, float]]]:
        run = self.read("GET", "runs/get", {"run_id": run_id}, RUN_FOUND).run
        names = [metric.key for metric in run.data.metrics if metric.key.startswith(prefixes)]
        found: dict[str, list[tuple[int, float]]] = {}
        until = time.monotonic() + _HISTORIES_S
        for start in range(0, len(names), _AT_ONCE):
            if time.monotonic() > until:
                raise UnreachableError(
                    f"MLflow at {self.uri} needs more than {_HISTORIES_S:g} s for {len(names)} metrics"
                )
            found |= self._histories(run_id, names[start : start + _AT_ONCE])
        return found

    def _histories(self, run_id: str, names: Sequence[str]) -> dict[str, list[tuple[int, float]]]:
        bodies = [{"run_id": run_id, "metric_key": name, "max_results": 5000} for name in names]
        answers = self._http.ask_all([_call("GET", "metrics/get-history", body) for body in bodies])
        found = {}
        for name, answer in zip(names, answers, strict=True):
            if isinstance(answer, UnreachableError):
                raise answer
            found[name] = read(answer, "metrics/get-history", HISTORY).points()
        return found

    def model_tags(self, uri: str) -> dict[str, str] | None:
        try:
            return tags_in(self.call("GET", *model_request(uri)))
        except RefusedError as error:
            if error.code in (GONE, "INVALID_PARAMETER_VALUE"):
                return None
            raise

    def is_answering(self) -> bool:
        try:
            return self._http.ask(HttpRequest("GET", "/health"), total_s=_HEALTH_S).is_success
        except UnreachableError:
            return False

    def close(self) -> None:
        self._http.close()

    def experiment(self, project: str) -> str:
        """Its id; created if there is none, restored if it was deleted."""
        try:
            found = self.read("GET", "experiments/get-by-name", {"experiment_name": project}, EXPERIMENT_FOUND)
        except RefusedError as error:
            if error.code not in ("", GONE):
                raise
            made = self.read("POST", "experiments/create", {"name": project}, EXPERIMENT_MADE)
            return self._shown_as_training(made.experiment_id)
        if found.experiment.lifecycle_stage == "deleted":
            logger.warning(
                "restoring a deleted MLflow experiment, because a job uses it as its project",
                extra={"project": project},
            )
            self.call("POST", "experiments/restore", {"experiment_id": found.experiment.experiment_id})
        if any(tag.key == KIND_TAG for tag in found.experiment.tags):
            return found.experiment.experiment_id
        return self._shown_as_training(found.experiment.experiment_id)

    def tag_experiment(self, experiment_id: str, tags: Mapping[str, str]) -> None:
        """Give an experiment views; one that MLflow won't tag stays as it is."""
        try:
            for key, value in tags.items():
                tag = {"experiment_id": experiment_id, "key": key, "value": value}
                self.call("POST", "experiments/set-experiment-tag", tag)
        except RefusedError as error:
            logger.warning(
                "MLflow refused a tag of an experiment; its pages lack our view",
                extra={"experiment": experiment_id, "error": str(error)},
            )

    def _shown_as_training(self, experiment_id: str) -> str:
        self.tag_experiment(experiment_id, experiment_tags())
        return experiment_id

    def _is_there(self, run_id: str) -> bool:
        """Whether the run can be written to. False if it was deleted: then the next attempt gets another one."""
        try:
            run = self.read("GET", "runs/get", {"run_id": run_id}, RUN_FOUND).run
        except RefusedError as error:
            if error.code == GONE:
                return False
            raise
        return run.info.lifecycle_stage != "deleted"

    def _find(self, experiment_id: str, job: Job) -> str | None:
        """Its run, by its tag; None if there is none, or it was deleted."""
        body = {"experiment_ids": [experiment_id], "filter": f"tags.`syncnorm.job_id` = '{job.id}'", "max_results": 9}
        names = [run.info.run_id for run in self.read("POST", "runs/search", body, RUNS_FOUND).runs]
        return job.run_id if job.run_id in names else next(iter(names), None)

    def _create(self, experiment_id: str, job: Job, attempts: Sequence[Attempt], note: str) -> str:
        tags = {"syncnorm.job_id": job.id, _NOTE: storable(note, _MAX_NOTE), **world_size_tags(job, attempts)}
        body = {
            "experiment_id": experiment_id,
            "run_name": storable(job.name),
            "start_time": _now_ms(),
            "tags": [{"key": key, "value": value} for key, value in tags.items()],
        }
        return self.read("POST", "runs/create", body, RUN_FOUND).run.info.run_id

    def _log(self, run_id: str, what: str, pairs: Pairs) -> list[str]:
        """Log tags or params; returns the names that MLflow refuses, found by bisection so that they block no other."""
        if not pairs:
            return []
        try:
            self.call("POST", "runs/log-batch", {"run_id": run_id, what: [{"key": k, "value": v} for k, v in pairs]})
        except RefusedError:
            if not self._is_there(run_id):
                raise
            if len(pairs) == 1:
                return [pairs[0][0]]
            middle = len(pairs) // 2
            return self._log(run_id, what, pairs[:middle]) + self._log(run_id, what, pairs[middle:])
        return []

    def call(self, method: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The answer of one endpoint of MLflow's REST API."""
        return self.read(method, path, body, OBJECT)

    def read(self, method: str, path: str, body: Mapping[str, Any], kind: TypeAdapter[T]) -> T:
        """The same, as the type that was asked for."""
        return read(self._http.ask(_call(method, path, body)), path, kind)

    def put(self, path: str, content: bytes) -> None:
        """Store an artifact through the server; path: behind `mlflow-artifacts:/`."""
        call = HttpRequest("PUT", f"/api/2.0/mlflow-artifacts/artifacts/{path}", content=content)
        answer = self._http.ask(call, total_s=TOTAL_S + len(content) / _BYTES_A_SECOND)
        if not answer.is_success:
            read(answer, path, OBJECT)


def _call(method: str, path: str, body: Mapping[str, Any]) -> HttpRequest:
    url = f"/api/2.0/mlflow/{path}"
    return HttpRequest(method, url, params=body) if method == "GET" else HttpRequest(method, url, json=body)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def run_url(uri: str, job: Job) -> str | None:
    """The page of a job's run, for a browser."""
    return run_page(uri, job.experiment_id, job.run_id)
