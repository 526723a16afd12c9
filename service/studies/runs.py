"""The MLflow run of a study: finds or creates it, groups its jobs under it, uploads its report. Plain REST."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

import fsspec

from syncnorm.service.backend_errors import RefusedError
from syncnorm.service.integrations.mlflow_answers import RUN_FOUND, RUNS_FOUND
from syncnorm.service.integrations.mlflow_experiment import runs_page, study_view
from syncnorm.service.integrations.mlflow_runs import MlflowTracker, Run
from syncnorm.service.jobs.study import Study
from syncnorm.trainer.contract.text import storable

PARENT_TAG = "mlflow.parentRunId"
"""Tag by which MLflow shows a run below another."""
STUDY_TAG = "syncnorm.study_id"


class StudyRuns(Protocol):
    """Port to MLflow for studies. Every method raises UnreachableError or RefusedError, and may be
    repeated."""

    def run_for_study(self, study: Study) -> Run:
        """The run of the study, by its tag; made if there is none."""

    def group(self, run_id: str, parent_run_id: str) -> None:
        """Show a run below another."""

    def upload(self, run_id: str, files: Mapping[str, bytes]) -> None:
        """Upload files to the run's artifacts, by path; an existing one is replaced."""

    def finish(self, run_id: str, status: str, note: str, metrics: Mapping[str, float]) -> None:
        """Set the final status of the study's run."""


class MlflowStudyRuns:
    def __init__(self, tracker: MlflowTracker) -> None:
        self._tracker = tracker

    def run_for_study(self, study: Study) -> Run:
        experiment_id = study.experiment_id or self._tracker.experiment(study.project)
        return Run(
            experiment_id, study.run_id or self._find(experiment_id, study) or self._create(experiment_id, study)
        )

    def group(self, run_id: str, parent_run_id: str) -> None:
        self._call("POST", "runs/set-tag", {"run_id": run_id, "key": PARENT_TAG, "value": parent_run_id})

    def upload(self, run_id: str, files: Mapping[str, bytes]) -> None:
        root = self._tracker.read("GET", "runs/get", {"run_id": run_id}, RUN_FOUND).run.info.artifact_uri.rstrip("/")
        for path, content in files.items():
            if urlsplit(root).scheme == "mlflow-artifacts":
                self._tracker.put(quote(f"{urlsplit(root).path.lstrip('/')}/{path}"), content)
            else:
                _write(f"{root}/{path}", content)

    def finish(self, run_id: str, status: str, note: str, metrics: Mapping[str, float]) -> None:
        at_ms = time.time_ns() // 1_000_000
        points = [{"key": key, "value": value, "timestamp": at_ms, "step": 0} for key, value in metrics.items()]
        tags = [{"key": "mlflow.note.content", "value": note}]
        self._call("POST", "runs/log-batch", {"run_id": run_id, "metrics": points, "tags": tags})
        self._call("POST", "runs/update", {"run_id": run_id, "status": status, "end_time": at_ms})

    def _find(self, experiment_id: str, study: Study) -> str | None:
        body = {"experiment_ids": [experiment_id], "filter": f"tags.`{STUDY_TAG}` = '{study.id}'", "max_results": 1}
        runs = self._tracker.read("POST", "runs/search", body, RUNS_FOUND).runs
        return runs[0].info.run_id if runs else None

    def _create(self, experiment_id: str, study: Study) -> str:
        self._tracker.tag_experiment(experiment_id, study_view(study.id, study.name))
        note = f"Study `{study.id}`: {curves_link(experiment_id, study.id)}."
        tags = {STUDY_TAG: study.id, "mlflow.user": study.owner, "mlflow.note.content": note}
        params = [{"key": "grid", "value": storable(json.dumps(study.spec["grid"]), 6000)}]
        body = {
            "experiment_id": experiment_id,
            "run_name": storable(study.name),
            "start_time": time.time_ns() // 1_000_000,
            "tags": [{"key": key, "value": value} for key, value in tags.items()],
        }
        run_id = self._tracker.read("POST", "runs/create", body, RUN_FOUND).run.info.run_id
        self._call("POST", "runs/log-batch", {"run_id": run_id, "params": params})
        return run_id

    def _call(self, method: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return self._tracker.call(method, path, body)


def curves_link(experiment_id: str, study_id: str) -> str:
    """To the charts of a study's jobs alone, within MLflow's pages."""
    return f"[the curves of its jobs]({runs_page('', experiment_id, charts=True, view=study_id)})"


def _write(url: str, content: bytes) -> None:
    """To artifacts that MLflow does not serve itself. Raises: RefusedError; whose they are only its error says."""
    try:
        with fsspec.open(url, "wb", auto_mkdir=True) as file:
            file.write(content)
    except Exception as error:  # of the kinds of each file system
        raise RefusedError(f"the artifact {url} could not be written: {type(error).__name__}: {error}") from error
