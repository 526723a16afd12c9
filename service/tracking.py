"""The MLflow run of a job: found or made, described, and given its final status. Plain REST with short timeouts."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx

from service.jobs import Attempt, Job

_NOTE = "mlflow.note.content"
_ENDED = ("FINISHED", "FAILED", "KILLED")
_MAX_PARAMS = 100  # MLflow's limit for one log-batch request
_MAX_VALUE = 6000  # and for the length of a parameter


class TrackingUnreachableError(Exception):
    """MLflow can't be asked right now, or refused."""


@dataclass(frozen=True)
class Run:
    experiment_id: str
    run_id: str


class Tracker(Protocol):
    """Port to MLflow. Every method raises TrackingUnreachableError."""

    def run_for(self, job: Job, attempts: Sequence[Attempt], note: str) -> Run:
        """The run of the job, by its tag; made if there is none. attempts: all of the job, in order. note: its page."""

    def set_status(self, run_id: str, status: str, note: str) -> None: ...

    def histories(self, run_id: str, prefix: str) -> dict[str, list[tuple[int, float]]]:
        """(step, value) of every metric whose name begins so."""

    def is_answering(self) -> bool: ...


class MlflowTracker:
    def __init__(self, uri: str, timeout_s: float = 10) -> None:
        self.uri = uri.rstrip("/")
        self._http = httpx.Client(base_url=self.uri, auth=mlflow_account(), timeout=timeout_s, trust_env=False)

    def run_for(self, job: Job, attempts: Sequence[Attempt], note: str) -> Run:
        experiment_id = job.experiment_id or self.experiment(job.project)
        run_id = job.run_id or self._find(experiment_id, job.id) or self._create(experiment_id, job)
        self._describe(run_id, job, attempts, note)
        return Run(experiment_id, run_id)

    def set_status(self, run_id: str, status: str, note: str) -> None:
        self.call("POST", "runs/set-tag", {"run_id": run_id, "key": _NOTE, "value": note})
        body: dict[str, Any] = {"run_id": run_id, "status": status}
        if status in _ENDED:
            body["end_time"] = _now_ms()
        self.call("POST", "runs/update", body)

    def histories(self, run_id: str, prefix: str) -> dict[str, list[tuple[int, float]]]:
        run = self.call("GET", "runs/get", {"run_id": run_id})["run"]
        names = [metric["key"] for metric in run["data"].get("metrics", []) if metric["key"].startswith(prefix)]
        return {name: self._history(run_id, name) for name in names}

    def _history(self, run_id: str, name: str) -> list[tuple[int, float]]:
        body = {"run_id": run_id, "metric_key": name, "max_results": 5000}
        points = self.call("GET", "metrics/get-history", body).get("metrics", [])
        return [(int(point.get("step", 0)), float(point["value"])) for point in points]

    def is_answering(self) -> bool:
        try:
            return self._http.get("/health", timeout=2).is_success
        except httpx.HTTPError:
            return False

    def close(self) -> None:
        self._http.close()

    def experiment(self, project: str) -> str:
        """Its id; made if there is none."""
        found = self._request("GET", "experiments/get-by-name", {"experiment_name": project})
        if found.is_success:
            experiment: dict[str, Any] = found.json()["experiment"]
            return str(experiment["experiment_id"])
        made: str = self.call("POST", "experiments/create", {"name": project})["experiment_id"]
        return made

    def _find(self, experiment_id: str, job_id: str) -> str | None:
        body = {"experiment_ids": [experiment_id], "filter": f"tags.`syncnorm.job_id` = '{job_id}'", "max_results": 1}
        runs = self.call("POST", "runs/search", body).get("runs", [])
        return runs[0]["info"]["run_id"] if runs else None

    def _create(self, experiment_id: str, job: Job) -> str:
        tags = [{"key": "syncnorm.job_id", "value": job.id}]
        body = {"experiment_id": experiment_id, "run_name": job.name, "start_time": _now_ms(), "tags": tags}
        run_id: str = self.call("POST", "runs/create", body)["run"]["info"]["run_id"]
        return run_id

    def _describe(self, run_id: str, job: Job, attempts: Sequence[Attempt], note: str) -> None:
        tags = {
            "syncnorm.norm": job.norm,
            **world_size_tags(job, attempts),
            "syncnorm.attempts": str(job.attempt),
            _NOTE: note,
            "mlflow.user": job.owner,
            **{f"syncnorm.label.{key}": value for key, value in job.labels.items()},
        }
        params = [{"key": key, "value": value[:_MAX_VALUE]} for key, value in flatten(job.spec)]
        for start in range(0, len(params), _MAX_PARAMS):
            self.call("POST", "runs/log-batch", {"run_id": run_id, "params": params[start : start + _MAX_PARAMS]})
        self.call(
            "POST", "runs/log-batch", {"run_id": run_id, "tags": [{"key": k, "value": v} for k, v in tags.items()]}
        )

    def call(self, method: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The answer of one endpoint of MLflow's REST API."""
        answer = self._request(method, path, body)
        if answer.is_error:
            raise TrackingUnreachableError(f"MLflow answered {answer.status_code} to {path}: {answer.text[:400]}")
        content: dict[str, Any] = answer.json()
        return content

    def put(self, path: str, content: bytes) -> None:
        """Store an artifact through the server; path: behind `mlflow-artifacts:/`."""
        try:
            answer = self._http.put(f"/api/2.0/mlflow-artifacts/artifacts/{path}", content=content)
        except httpx.HTTPError as error:
            raise TrackingUnreachableError(f"MLflow can't be reached at {self.uri}: {error}") from error
        if answer.is_error:
            raise TrackingUnreachableError(f"MLflow answered {answer.status_code} to {path}: {answer.text[:400]}")

    def _request(self, method: str, path: str, body: Mapping[str, Any]) -> httpx.Response:
        url = f"/api/2.0/mlflow/{path}"
        try:
            if method == "GET":
                return self._http.get(url, params=dict(body))
            return self._http.request(method, url, json=body)
        except httpx.HTTPError as error:
            raise TrackingUnreachableError(f"MLflow can't be reached at {self.uri}: {error}") from error


def mlflow_account() -> tuple[str, str] | None:
    """User and password from the variables of MLflow's own client; None where the server asks for none.

    The password may also lie in the file that MLFLOW_TRACKING_PASSWORD_FILE names.
    """
    user, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
    if path := os.environ.get("MLFLOW_TRACKING_PASSWORD_FILE"):
        password = Path(path).read_text().strip()
    return (user, password) if user and password else None


def flatten(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and texts of everything in a spec that is set; env is left out, for it may hold private values."""
    for key, item in value.items():
        name = f"{prefix}{key}"
        if name == "env" or item is None:
            continue
        if isinstance(item, Mapping) and item:
            yield from flatten(item, f"{name}.")
        else:
            yield name, item if isinstance(item, str) else json.dumps(item)


def world_size_tags(job: Job, attempts: Sequence[Attempt]) -> dict[str, str]:
    """How many workers the latest attempt has; and, once that has changed, how many there were from which step on."""
    if not attempts:
        return {"syncnorm.world_size": str(job.workers)}
    tags = {"syncnorm.world_size": str(attempts[-1].workers)}
    before, changes = job.workers, []
    for attempt in attempts:
        if attempt.workers != before:
            changes.append(f"{attempt.workers} from step {attempt.resume_step}")
        before = attempt.workers
    return tags | ({"syncnorm.world_size_changes": ", ".join(changes)} if changes else {})


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def run_url(uri: str, job: Job) -> str | None:
    """Where a browser shows the run of a job."""
    return run_page(uri, job.experiment_id, job.run_id)


def run_page(uri: str, experiment_id: str | None, run_id: str | None) -> str | None:
    if run_id is None or experiment_id is None:
        return None
    return f"{uri.rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}"
