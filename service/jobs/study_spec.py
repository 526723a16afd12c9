"""The spec of a study: a base job, a grid over its fields, and seeds. Expansion into jobs is pure."""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator

from syncnorm.service.jobs.study_claims import Claim
from syncnorm.service.jobs.study_metrics import reduction_problem
from syncnorm.trainer.contract.bounds import free_problem
from syncnorm.trainer.contract.plan import Inspection
from syncnorm.trainer.contract.spec import JobSpec, Name
from syncnorm.trainer.contract.spec_reader import capped, described, one_a_field, read_spec, unknown_field
from syncnorm.trainer.errors import Problem, SpecError

MAX_CHILDREN = 500
MAX_SEEDS = 100
MAX_BASE_BYTES = 64 * 1024
_IS_JOB = (
    "is a job, since it has a model, and no base or grid. Use `syncnorm plan` and `syncnorm submit`, or POST /v1/jobs. "
    "To make a study of it, write it under base"
)
SEED = "seed"
"""Name of a child's seed next to its place in the grid."""

Text = Annotated[str, StringConstraints(max_length=4000)]
Path = Annotated[str, StringConstraints(max_length=256, pattern=r"^[A-Za-z_][\w.]*(,[A-Za-z_][\w.]*)*$")]
MetricName = Annotated[str, StringConstraints(max_length=200)]
AxisLabel = Annotated[str, StringConstraints(min_length=1, max_length=250)]
Values = Annotated[list[Any], Field(max_length=MAX_CHILDREN)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
Point = dict[str, str]
"""A place in the grid: axis → label of the value."""


class StudySpec(BaseModel):
    """A family of jobs: one for every combination of values in `grid` and every seed."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    name: Name
    """What you call the study; its jobs are NAME-001, NAME-002, … No default."""
    base: dict[str, Any]
    """A job spec that all jobs share; its name and seed may be left out. No default."""
    grid: Annotated[dict[Path, Values | dict[AxisLabel, Any]], Field(min_length=1, max_length=8)]
    """Field of the job spec (a dotted path such as norm.kind) → values, as a list or as {label: value}. No default.
    Several fields that change together are one axis: `data.batch_size,optimizer.lr: [[4, 0.05], [16, 0.2]]`. An object
    as value replaces the whole part, for example `norm: {plain: {kind: batch}, clipped: {kind: batch_renorm, options:
    {r_max: 2}}}`."""
    seeds: Annotated[list[Seed], Field(min_length=1, max_length=MAX_SEEDS)] = [0, 1, 2]
    """Every combination runs once with each seed, and differences are taken within a seed. Default: [0, 1, 2]; a
    confidence interval needs at least two."""
    metrics: Annotated[list[MetricName], Field(min_length=1, max_length=16)] = ["val/error"]
    """Metrics that the report compares, by name or as `reduction:name`, for example `max:val/loss` (see
    docs/reference/studies.md). The first is drawn over the grid. Default: val/error."""
    curves: Annotated[list[MetricName], Field(max_length=8)] = [
        "train/loss",
        "val/error",
    ]
    """Metrics drawn over training. Default: train/loss and val/error."""
    source: Text = ""
    """Whose finding the study is about. Shown in the report. Default: empty."""
    expects: Text = ""
    """What the source leads you to expect, in words. Shown in the report. Default: empty."""
    claims: Annotated[list[Claim], Field(max_length=32)] = []
    """The same for a program: the report says of each claim whether the numbers agree. Default: none."""

    @field_validator("grid")
    @classmethod
    def _values(cls, grid: dict[str, Any]) -> dict[str, Any]:
        for path, values in grid.items():
            if not values:
                raise ValueError(f"{path} must have at least one value")
            labels = list(labelled(path, values))
            if len({label for label, _ in labels}) != len(labels):
                raise ValueError(f"{path} has two values with the same label; label them yourself: {{label: value, …}}")
        return grid

    @field_validator("seeds")
    @classmethod
    def _once_each(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) != len(seeds):
            raise ValueError(f"each seed may be given once, got {seeds}")
        return seeds


@dataclass(frozen=True)
class Child:
    """One job of a study. number: from 1, in the order of the grid, seeds innermost; seeds added later follow."""

    number: int
    point: Point
    seed: int
    spec: JobSpec


def labelled(path: str, values: list[Any] | dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """(label, value) of an axis. The label of a listed value is its text; of fields that move together, the first's."""
    if isinstance(values, dict):
        yield from values.items()
        return
    for value in values:
        yield label_of(value[0] if "," in path and isinstance(value, list) and value else value), value


def read_study(data: Any) -> StudySpec:
    """Raises: SpecError with one Problem for each thing wrong; paths are JSON pointers."""
    if isinstance(data, dict) and "model" in data and "base" not in data and "grid" not in data:
        raise SpecError([Problem("", _IS_JOB)])
    try:
        study = StudySpec.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        raise SpecError(capped(one_a_field(error.errors()), _problem)) from error
    except (TypeError, ValueError, RecursionError) as error:
        raise SpecError([Problem("", f"must be plain JSON values: {error}")]) from error
    if problems := list(_free_problems(study)):
        raise SpecError(problems)
    if problems := [*_metric_problems(study), *_claim_problems(study)]:
        raise SpecError(problems)
    return study


def _free_problems(study: StudySpec) -> Iterator[Problem]:
    """What is wrong with the values of axes, which may be any JSON."""
    for axis, values in study.grid.items():
        if (found := free_problem(values)) is not None:
            where, message = found
            yield Problem("/".join(["/grid", axis, *filter(None, where.split("."))]), message)


def _metric_problems(study: StudySpec) -> Iterator[Problem]:
    for what, metrics in (("metrics", study.metrics), ("curves", study.curves)):
        for index, metric in enumerate(metrics):
            if problem := reduction_problem(metric):
                yield Problem(f"/{what}/{index}", problem)


def _claim_problems(study: StudySpec) -> Iterator[Problem]:
    """Refuses claims about values that the grid does not have, since they would never be measured."""
    labels = {axis: [label for label, _ in labelled(axis, values)] for axis, values in study.grid.items()}
    for index, claim in enumerate(study.claims):
        for metric in filter(None, (claim.metric, claim.than_metric)):
            if problem := reduction_problem(metric):
                yield Problem(f"/claims/{index}/metric", problem)
        for side in ("less", "than", "where"):
            for axis, value in getattr(claim, side).items():
                pointer = f"/claims/{index}/{side}/{axis}"
                if axis not in labels:
                    yield Problem(pointer, f"must name an axis of the grid: {', '.join(labels)}")
                elif label_of(value) not in labels[axis]:
                    yield Problem(pointer, f"must be a value of the axis: {', '.join(labels[axis])}; got {value!r}")


def label_of(value: Any) -> str:
    """How a value of an axis is shown and compared: text as it is, the rest as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def _problem(item: Any) -> Problem:
    pointer = "".join(f"/{part}" for part in item["loc"])
    if item["type"] == "extra_forbidden" and len(item["loc"]) == 1 and item["loc"][0] in JobSpec.model_fields:
        return Problem(pointer, f"is a field of the jobs; write it under base, as base.{item['loc'][0]}")
    if item["type"] == "extra_forbidden":
        return Problem(pointer, unknown_field(StudySpec, item["loc"]))
    return Problem(pointer, described(item))


def expand(study: StudySpec, admit: Callable[[JobSpec], JobSpec] = lambda spec: spec) -> list[Child]:
    """Every job of the study. admit: gives a job's spec with its names resolved, or raises SpecError.

    Raises: SpecError whose problems name places in the study as JSON pointers (RFC 6901): `/grid/norm.kind/2` for a
    value of an axis, `/base/…` for the rest.
    """
    axes = {path: list(labelled(path, values)) for path, values in study.grid.items()}
    if problem := _too_large(study):
        raise SpecError([problem])
    children: list[Child] = []
    problems: dict[Problem, None] = {}
    for combination in itertools.product(*axes.values()):
        point = {path: label for path, (label, _) in zip(axes, combination, strict=True)}
        try:
            document = _document(study, dict(zip(axes, (value for _, value in combination), strict=True)))
            spec = admit(read_spec(document))
        except SpecError as error:
            problems |= dict.fromkeys(_located(problem, point, axes) for problem in error.problems)
            continue
        for seed in study.seeds:
            number = len(children) + 1
            children.append(Child(number, point, seed, child_spec(spec, study.name, number, seed)))
    if problems:
        raise SpecError(list(problems))
    return children


def optimizer_problems(
    study: StudySpec, children: Sequence[Child], inspect: Callable[[JobSpec], Inspection | None]
) -> Iterator[Problem]:
    """Axes that change the optimizer of a module which brings its own: each of these jobs would fail at its start.

    inspect: builds a job's model; None if that is not possible here. Asked once, about the first such job.
    """
    axes = [axis for axis in study.grid if any(path.split(".")[0] in _OF_OPTIMIZER for path in axis.split(","))]
    child = next((child for child in children if _may_bring_its_own(child.spec)), None)
    if not axes or child is None or (found := inspect(child.spec)) is None:
        return
    for finding in found.findings:
        if finding.code == "cannot_build" and finding.path in _OF_OPTIMIZER:
            yield from (Problem(f"/grid/{axis}", f"{finding.message} {finding.fix}") for axis in axes)


_OF_OPTIMIZER = ("optimizer", "schedule")


def _may_bring_its_own(spec: JobSpec) -> bool:
    is_override = spec.optimizer is not None and spec.optimizer.override
    return spec.model.class_path is not None and not is_override and bool(spec.optimizer or spec.schedule)


def _too_large(study: StudySpec) -> Problem | None:
    count = math.prod(map(len, study.grid.values())) * len(study.seeds)
    if count > MAX_CHILDREN:
        return Problem("/grid", f"a study must not exceed {MAX_CHILDREN} jobs, got {count}; leave values out")
    if (size := len(json.dumps(study.base))) > MAX_BASE_BYTES:
        return Problem("/base", f"must not exceed {MAX_BASE_BYTES} bytes, got {size}")
    return None


def _document(study: StudySpec, values: Mapping[str, Any]) -> dict[str, Any]:
    document = copy.deepcopy(study.base)
    document.setdefault("name", study.name)
    for axis, value in values.items():
        paths = axis.split(",")
        if len(paths) > 1 and (not isinstance(value, list) or len(value) != len(paths)):
            message = f"must be a list of {len(paths)} values, one for each of {axis}; got {json.dumps(value)}"
            raise SpecError([Problem(axis, message)])
        for path, one in zip(paths, [value] if len(paths) == 1 else value, strict=True):
            if path == SEED:
                raise SpecError([Problem(axis, "must not be an axis; list the seeds under seeds")])
            _set(document, path, one)
    return document


def _set(document: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    target = document
    for depth, name in enumerate(parents):
        inner = target.setdefault(name, {})
        if not isinstance(inner, dict):
            where = ".".join(parents[: depth + 1])
            raise SpecError([Problem(path, f"is not a field of a job: {where} is {json.dumps(inner)}")])
        target = inner
    target[last] = copy.deepcopy(value)


def _located(problem: Problem, point: Point, axes: Mapping[str, list[tuple[str, Any]]]) -> Problem:
    """A problem of a child as a problem of the study: at the value of the axis that set the field, or in the base."""
    for axis, label in point.items():
        for path in axis.split(","):
            if problem.path in (axis, path) or problem.path.startswith(path + "."):
                index = [name for name, _ in axes[axis]].index(label)
                rest = problem.path.removeprefix(axis).removeprefix(path).strip(".")
                detail = f"{rest}: {problem.message}" if rest else problem.message
                return Problem(f"/grid/{axis}/{index}", f"{label}: {detail}")
    pointer = problem.path.replace(".", "/")
    return Problem(f"/base/{pointer}" if pointer else "/base", problem.message)


def child_spec(spec: JobSpec, study: str, number: int, seed: int) -> JobSpec:
    """The spec of one job. spec: of its place in the grid. study: its name."""
    return spec.model_copy(update={"name": f"{study[:110]}-{number:03d}", "seed": seed})
