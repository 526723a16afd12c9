"""More seeds for a study that exists: its new children and their jobs. Pure."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timedelta

from pydantic import ValidationError

from syncnorm.service.jobs.admission import new_job
from syncnorm.service.jobs.job import Job
from syncnorm.service.jobs.study import Study, StudyChild, of_study
from syncnorm.service.jobs.study_spec import MAX_CHILDREN, MAX_SEEDS, StudySpec, child_spec
from syncnorm.trainer.contract.spec import JobSpec
from syncnorm.trainer.errors import Problem, SpecError


class GrowthError(ValueError):
    """The study as it is can't have more seeds."""


def more_seeds(
    study: Study,
    family: Sequence[tuple[StudyChild, Job | None]],
    seeds: Sequence[int],
    admit: Callable[[JobSpec], JobSpec],
    now: datetime,
) -> list[tuple[StudyChild, Job]]:
    """A child with its job for each place of the grid and each of `seeds` that the study lacks, numbered on.

    Each has the spec of a job at its place, so that nothing but the seed differs: the same code, the same weights to
    start from. admit: as for any submit; raises SpecError. Raises: GrowthError; SpecError at /seeds for too many.
    """
    spec = _read(study)
    new = [seed for seed in dict.fromkeys(seeds) if seed not in spec.seeds]
    places = list(_places(family)) if new else []
    if problem := _too_many(len(spec.seeds) + len(new), len(family) + len(places) * len(new)):
        raise SpecError([problem])
    admitted = [(child, admit(job_spec)) for child, job_spec in places]
    following = itertools.count(max((child.number for child, _ in family), default=0) + 1)
    grown = []
    for (child, job_spec), seed in itertools.product(admitted, new):
        number = next(following)
        queued_at = now + timedelta(microseconds=number)
        job = of_study(study.id, new_job(child_spec(job_spec, study.name, number, seed), study.owner, queued_at))
        grown.append((StudyChild(study.id, number, job.id, job.name, child.point, seed), job))
    return grown


def _read(study: Study) -> StudySpec:
    try:
        return StudySpec.model_validate_json(json.dumps(study.spec))
    except ValidationError as error:
        raise GrowthError(f"The stored spec of study {study.id} can't be read: {error}") from error


def _places(family: Iterable[tuple[StudyChild, Job | None]]) -> Iterator[tuple[StudyChild, JobSpec]]:
    """Each place of the grid by its first child, with the spec of a job there."""
    first: dict[str, StudyChild] = {}
    specs: dict[str, JobSpec] = {}
    for child, job in family:
        if child.problem is not None:
            raise GrowthError(f"Job {child.number} of the study can't be read: {child.problem}")
        place = json.dumps(child.point)
        first.setdefault(place, child)
        if job is not None and job.spec.value is not None:
            specs.setdefault(place, job.spec.value)
    if gone := [child for place, child in first.items() if place not in specs]:
        places = "; ".join(", ".join(f"{axis} {label}" for axis, label in child.point.items()) for child in gone[:3])
        raise GrowthError(
            f"All jobs at a place of the grid were deleted, or can't be read, so that no other can be made like them: "
            f"{places}. Submit study.json, an artifact of the study's run in MLflow, with all seeds."
        )
    for place, child in first.items():
        yield child, specs[place]


def _too_many(seeds: int, children: int) -> Problem | None:
    if seeds > MAX_SEEDS:
        return Problem("seeds", f"a study must not exceed {MAX_SEEDS} seeds, got {seeds} with those it has")
    if children > MAX_CHILDREN:
        return Problem("seeds", f"a study must not exceed {MAX_CHILDREN} jobs, got {children} with those it has")
    return None
