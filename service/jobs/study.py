"""A study and its jobs as values, and its state, which follows from theirs. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from syncnorm.service.jobs.admission import new_job
from syncnorm.service.jobs.job import TERMINAL, Job, JobState, new_job_id
from syncnorm.service.jobs.study_spec import Child, Point, StudySpec


class StudyState(StrEnum):
    """Follows from the states of its jobs: queued (none started), running, paused (all that is left), finished."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    FINISHED = "finished"


@dataclass(frozen=True)
class Study:
    """A family of jobs. reported_at: when the report in MLflow was made; None: not yet."""

    id: str
    name: str
    project: str
    owner: str
    spec: dict[str, Any]
    created_at: datetime
    experiment_id: str | None = None
    run_id: str | None = None
    reported_at: datetime | None = None
    failures: int = 0
    """How often in a row its report could not be made or published."""
    problem: str | None = None
    """The latest error."""


@dataclass(frozen=True)
class StudyChild:
    """A place in the grid with a seed, and the job that trains it. grouped_run: the run that is known to its parent."""

    study_id: str
    number: int
    job_id: str
    name: str
    point: Point
    seed: int
    grouped_run: str | None = None
    problem: str | None = None
    """What of its row can't be read."""


def new_study(
    spec: StudySpec, children: Sequence[Child], owner: str, now: datetime
) -> tuple[Study, list[StudyChild], list[Job]]:
    """The study with its children and their jobs, one each; the queue takes them in the order of the grid."""
    study = Study(
        id=new_job_id().replace("job_", "study_", 1),
        name=spec.name,
        project=children[0].spec.project,
        owner=owner,
        spec=spec.model_dump(mode="json"),
        created_at=now,
    )
    jobs = [
        of_study(study.id, new_job(child.spec, owner, now + timedelta(microseconds=child.number))) for child in children
    ]
    rows = [
        StudyChild(study.id, child.number, job.id, job.name, child.point, child.seed)
        for child, job in zip(children, jobs, strict=True)
    ]
    return study, rows, jobs


def of_study(study_id: str, job: Job) -> Job:
    """With the label by which the jobs of a study are found."""
    return replace(job, labels=job.labels | {"study": study_id})


Counts = dict[str, int]
"""How many jobs of a study are in which state; `deleted`: a job that is no longer there."""
DELETED = "deleted"


def count_states(jobs: Iterable[Job | None]) -> Counts:
    return dict(Counter(DELETED if job is None else job.state.value for job in jobs))


def state_of(counts: Counts) -> StudyState:
    """Paused if all unfinished jobs are paused. A deleted job counts as finished."""
    left = set(counts) - {DELETED, *TERMINAL}
    if not left:
        return StudyState.FINISHED
    if left == {JobState.PAUSED}:
        return StudyState.PAUSED
    return StudyState.QUEUED if left == {JobState.QUEUED} else StudyState.RUNNING
