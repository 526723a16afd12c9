"""The results of every job of a study: from our rows and the files of its attempts, never from MLflow."""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, NamedTuple

from pydantic import BaseModel, Field, ValidationError

from syncnorm.service.integrations.mlflow_runs import run_url
from syncnorm.service.jobs.job import Job
from syncnorm.service.jobs.study import StudyChild
from syncnorm.service.jobs.study_spec import MAX_CHILDREN
from syncnorm.service.storage.attempt_files import read_metrics
from syncnorm.service.store.tables.studies import Family
from syncnorm.service.studies.measures import Outcome, Series, certificate_values
from syncnorm.trainer.contract.protocol import attempt_folder

_UNREADABLE = "unreadable"


def outcomes(family: Family, storage: str, mlflow_uri: str) -> list[Outcome]:
    """mlflow_uri: for links, as a browser reaches it."""
    return [_outcome(child, job, storage, mlflow_uri) for child, job in family]


def placed(outcome: Outcome, axes: Iterable[str]) -> Outcome:
    """With a label for each axis of the grid, also where the row of the child is damaged."""
    return replace(outcome, point={axis: outcome.point.get(axis, _UNREADABLE) for axis in axes})


def _outcome(child: StudyChild, job: Job | None, storage: str, mlflow_uri: str) -> Outcome:
    planned = Outcome(child.number, child.job_id, child.name, child.point, child.seed, state="deleted")
    if job is None:
        return replace(planned, message="The job was deleted.")
    folders = tuple(attempt_folder(storage, job.id, number) for number in range(1, job.attempt + 1))
    measured = _measured(job, folders)
    return replace(
        planned,
        state=job.state.value,
        reason=job.reason.value if job.reason else None,
        message=" ".join(filter(None, (job.message, child.problem))),
        run_url=run_url(mlflow_uri, job),
        values=certificate_values(job.model),
        series=measured.series,
        left_out=measured.left_out,
        not_finite=measured.not_finite,
    )


def _measured(job: Job, folders: tuple[str, ...]) -> Measured:
    return _finished(folders, job.version) if job.is_terminal else read_measured(folders)


@functools.lru_cache(maxsize=2 * MAX_CHILDREN)
def _finished(folders: tuple[str, ...], _version: int) -> Measured:
    """Cached measurements of finished jobs, which do not change any more: a report that is read again reads no file."""
    return read_measured(folders)


class Measured(NamedTuple):
    """left_out: lines that are not metrics. not_finite: metrics whose last value is none, such as NaN."""

    series: Series
    left_out: int
    not_finite: frozenset[str] = frozenset()


def read_series(folders: Sequence[str]) -> Series:
    return read_measured(folders).series


def read_measured(folders: Sequence[str]) -> Measured:
    """All metrics of all attempts.

    For a step that was recorded twice the first value counts. Lines that are not metrics are skipped, and so are values
    that are not finite; metrics that end in one are named. Raises: StorageError if they can't be read now: a late
    report is better than an incomplete one.
    """
    found: dict[str, dict[int, float]] = defaultdict(dict)
    left_out = 0
    for folder in folders:
        for line in read_metrics(folder):
            point = _read_point(line)
            if point is None:
                left_out += 1
            elif not math.isfinite(found[point.key].get(point.step, math.nan)):
                found[point.key][point.step] = point.value
    return Measured(_finite(found), left_out, frozenset(key for key in found if _ends_not_finite(found[key])))


def _finite(found: Mapping[str, Mapping[int, float]]) -> Series:
    series = {
        key: [(step, value) for step, value in sorted(points.items()) if math.isfinite(value)]
        for key, points in found.items()
    }
    return {key: points for key, points in series.items() if points}


def _ends_not_finite(points: Mapping[int, float]) -> bool:
    return not math.isfinite(points[max(points)])


class _Point(BaseModel):
    key: Annotated[str, Field(min_length=1, max_length=1000)]
    value: float
    step: Annotated[int, Field(ge=0, le=2**63 - 1)]


def _read_point(line: str) -> _Point | None:
    """None for a line that is no point: after a power cut a file may hold anything."""
    try:
        return _Point.model_validate_json(line)
    except ValidationError:
        return None
