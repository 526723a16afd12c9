"""What became of every child of a study: from our rows and from the files of its attempts, never from MLflow."""

from __future__ import annotations

import functools
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from service.files import read_metrics
from service.jobs import Job
from service.store.studies import Family
from service.studies.measures import Outcome, Series, certificate_values
from service.studies.spec import MAX_CHILDREN
from service.studies.study import StudyChild
from service.tracking import run_url
from trainer.attempt import attempt_folder


def outcomes(family: Family, storage: str, mlflow_uri: str) -> list[Outcome]:
    """mlflow_uri: for links, as a browser reaches it."""
    return [_outcome(child, job, storage, mlflow_uri) for child, job in family]


def _outcome(child: StudyChild, job: Job | None, storage: str, mlflow_uri: str) -> Outcome:
    planned = Outcome(child.number, child.job_id, child.name, child.point, child.seed, state="deleted")
    if job is None:
        return replace(planned, message="The job was deleted.")
    return replace(
        planned,
        state=job.state.value,
        reason=job.reason.value if job.reason else None,
        message=job.message,
        run_url=run_url(mlflow_uri, job),
        values=certificate_values(job.model),
        series=_series(job, tuple(attempt_folder(storage, job.id, number) for number in range(1, job.attempt + 1))),
    )


def _series(job: Job, folders: tuple[str, ...]) -> Series:
    return _finished_series(folders, job.version) if job.is_terminal else read_series(folders)


@functools.lru_cache(maxsize=2 * MAX_CHILDREN)
def _finished_series(folders: tuple[str, ...], _version: int) -> Series:
    """Nothing is added any more to what a finished job measured: a report that is looked at again reads no file."""
    return read_series(folders)


def read_series(folders: Sequence[str]) -> Series:
    """All metrics of all attempts. Of a step recorded twice the first value counts; what is not finite is left out.

    Raises: StorageError where they can't be read now: a report is late rather than empty.
    """
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for folder in folders:
        for line in read_metrics(folder):
            point = json.loads(line)
            if math.isfinite(point["value"]):
                found[point["key"]].setdefault(point["step"], point["value"])
    return {key: sorted(points.items()) for key, points in found.items()}
