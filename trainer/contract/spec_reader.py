"""From parsed JSON or YAML to a JobSpec, or to every problem found, each with its path."""

from __future__ import annotations

import copy
import difflib
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from syncnorm.norm.kind import KINDS
from syncnorm.trainer.contract.bounds import free_problem
from syncnorm.trainer.contract.catalog.names import DATASETS, LIBRARIES, MODELS
from syncnorm.trainer.contract.spec import DataSpec, ExportSpec, JobSpec, ModelSpec, NormSpec
from syncnorm.trainer.contract.spec.values import NAME
from syncnorm.trainer.contract.text import storable
from syncnorm.trainer.errors import Problem, SpecError

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")
_OF_STUDY = {"base", "grid"}
_IS_STUDY = (
    "is a study, since it has base or grid. Use `syncnorm study plan` and `syncnorm study submit`, or POST /v1/studies"
)
_RESERVED = ("RAY_", "SYNCNORM_")
_MOST_PROBLEMS = 50
_LONGEST_INPUT = 200
_BOUNDS = {
    "less_than_equal": "must be at most {le}",
    "less_than": "must be below {lt}",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be above {gt}",
    "string_too_long": "must not exceed {max_length} characters",
}


def read_spec(data: Any) -> JobSpec:
    """The job spec in `data` (parsed JSON or YAML), every default filled in, init_args included.

    Raises: SpecError with one Problem for each thing wrong.
    """
    if isinstance(data, dict) and "model" not in data and not _OF_STUDY.isdisjoint(data):
        raise SpecError([Problem("", _IS_STUDY)])
    spec = _parse(JobSpec, data, ())
    if found := list(_free_problems(spec)):
        raise SpecError(found)
    problems = [
        *_norm_problems(spec.norm),
        *_environment_problems(spec),
        *_elastic_problems(spec),
        *_export_problems(spec),
    ]
    filled: dict[str, Any] = {}
    parts: list[tuple[str, ModelSpec | DataSpec, Mapping[str, type[BaseModel]]]] = [
        ("model", spec.model, MODELS),
        ("data", spec.data, DATASETS),
    ]
    for what, part, catalog in parts:
        try:
            filled[what] = _fill_init_args(what, part, catalog)
        except SpecError as error:
            problems += error.problems
    if problems:
        raise SpecError(problems)
    return spec.model_copy(update=filled)


def read_export(data: Any) -> ExportSpec:
    """The `export` section of a spec by itself, as `read_spec` reads it.

    Raises: SpecError with one Problem for each thing wrong.
    """
    return _parse(ExportSpec, data, ())


def read_stored(data: Mapping[str, Any]) -> JobSpec:
    """A spec that this or an earlier version took: numbers beyond the bounds of today count as the nearest within.

    Raises: pydantic.ValidationError for what no bound can mend.
    """
    document = copy.deepcopy(dict(data))
    try:
        return JobSpec.model_validate_json(json.dumps(document))
    except ValidationError as error:
        for item in error.errors(include_url=False):
            bounds = item.get("ctx", {})
            _replace(document, item["loc"], bounds.get("le", bounds.get("ge")))
    return JobSpec.model_validate_json(json.dumps(document))


def _replace(document: Any, location: Sequence[int | str], value: Any) -> None:
    """Put a value in the place of what `location` leads to; of a union, the last part names a member, no place."""
    *parents, last = (part for part in location if not str(part).startswith(("constrained", "literal")))
    for part in parents:
        document = document[part]
    if value is not None:
        document[last] = value


def _free_problems(spec: JobSpec) -> Iterator[Problem]:
    """What is wrong in the parts of a spec that take any JSON."""
    parts: dict[str, Mapping[str, Any]] = {
        "model.init_args": spec.model.init_args,
        "data.init_args": spec.data.init_args,
        "norm.options": spec.norm.options,
    }
    parts |= {f"{path}.init_args": part.init_args for path, part in spec.model.named_parts().items()}
    parts |= {f"norm.overrides.{index}.options": one.options for index, one in enumerate(spec.norm.overrides)}
    for path, value in parts.items():
        if (found := free_problem(value)) is not None:
            where, message = found
            yield Problem(f"{path}.{where}" if where else path, message)


def _fill_init_args(
    what: str, part: ModelSpec | DataSpec, catalog: Mapping[str, type[BaseModel]]
) -> ModelSpec | DataSpec:
    if part.name is None or (what == "model" and part.name.startswith(LIBRARIES)):
        return part
    if part.name not in catalog:
        raise SpecError([Problem(f"{what}.name", f"must be one of {', '.join(sorted(catalog))}; got {part.name!r}")])
    args = _parse(catalog[part.name], part.init_args, (what, "init_args"))
    return part.model_copy(update={"init_args": args.model_dump(mode="json")})


def _environment_problems(spec: JobSpec) -> Iterator[Problem]:
    for name in spec.env:
        if name.startswith(_RESERVED):
            yield Problem(f"env.{name}", f"names that begin with {' or '.join(_RESERVED)} belong to the service")


def _elastic_problems(spec: JobSpec) -> Iterator[Problem]:
    """Whatever number of workers is chosen, groups of norm.group must stay whole."""
    res, group = spec.resources, spec.norm.group
    if res.min_workers is None or not isinstance(group, int):
        return
    for name, workers in (("min_workers", res.min_workers), ("workers", res.workers)):
        if workers % group:
            text = f"must be a multiple of norm.group ({group}) where min_workers is given; got {workers}"
            yield Problem(f"resources.{name}", text)


def _export_problems(spec: JobSpec) -> Iterator[Problem]:
    export = spec.export
    if isinstance(export.checkpoint, int):
        text = f"a job has no steps yet when you submit it: must be last or best, got {export.checkpoint}"
        yield Problem("export.checkpoint", text)
    if spec.train.average is not None and spec.statistics.population == "none":
        text = "train.average needs statistics of its own: must be pooled or paper, got none"
        yield Problem("statistics.population", text)
    for problem in export_problems(export, spec):
        yield Problem(f"export.{problem.path}", problem.message)


def export_problems(export: ExportSpec, spec: JobSpec) -> Iterator[Problem]:
    """What is wrong with this `export` section for a job with this spec; paths are within the section."""
    if export.checkpoint == "best" and spec.train.keep_best is None:
        text = "best needs train.keep_best, which says what is best and keeps that checkpoint; got none"
        yield Problem("checkpoint", text)
    if export.statistics == "population" and spec.statistics.population == "none":
        yield Problem("statistics", "population needs statistics.population to be pooled or paper, got none")
    if export.statistics == "running" and spec.train.average is not None:
        text = "running statistics are of other weights than train.average gives; use auto or population, got running"
        yield Problem("statistics", text)


def _norm_problems(norm: NormSpec) -> Iterator[Problem]:
    if norm.kind == "auto":
        if norm.options:
            yield Problem("norm.options", "kind auto picks its own options; leave them out or name a kind")
    else:
        yield from _kind_problems("norm", norm.kind, norm.options)
    for index, override in enumerate(norm.overrides):
        yield from _kind_problems(f"norm.overrides.{index}", override.kind, override.options)


def _kind_problems(path: str, kind: str, options: Mapping[str, Any]) -> Iterator[Problem]:
    if kind not in KINDS:
        yield Problem(f"{path}.kind", f"must be one of {', '.join(KINDS)}, or auto; got {kind!r}")
        return
    known = KINDS[kind].options
    for name, value in options.items():
        if name not in known:
            having = ", ".join(known) or "none"
            yield Problem(f"{path}.options.{name}", f"{kind} has no such option; it has: {having}")
        elif problem := known[name].problem(value):
            yield Problem(f"{path}.options.{name}", problem)


def _parse(model: type[M], data: Any, prefix: tuple[str, ...]) -> M:
    try:
        # Through JSON: strict types for scalars, but lists and objects as JSON has them.
        return model.model_validate_json(json.dumps(data))
    except ValidationError as error:
        raise SpecError(capped(one_a_field(error.errors()), lambda item: _problem(model, prefix, item))) from error
    except (TypeError, ValueError, RecursionError) as error:
        raise SpecError([Problem(".".join(prefix), f"must be plain JSON values: {error}")]) from error


_MEMBER = re.compile(r"literal\[.*\]|constrained-\w+|bool|int|float|str")


def one_a_field(errors: Sequence[Any]) -> list[Any]:
    """Errors of pydantic with one for each field that may be one of several things, of which it has one for each.

    If the value is of the right type, and only too large, the others say nothing.
    """
    found: list[Any] = []
    for (field, is_choice), group in itertools.groupby(errors, key=_field_of):
        members = list(group)
        if not is_choice or len(members) == 1:
            found += members
            continue
        of_its_type = [one for one in members if one["type"] in _BOUNDS]
        first, *others = of_its_type or members
        words = [one["msg"].removeprefix("Input should be ") for one in others]
        found.append(first | {"loc": field, "msg": " or ".join([first["msg"], *words])})
    return found


def _field_of(error: Any) -> tuple[tuple[str | int, ...], bool]:
    """Where the field is, and whether pydantic has added which of the things that it may be is meant."""
    *field, last = error["loc"] or ("",)
    is_choice = isinstance(last, str) and _MEMBER.fullmatch(last) is not None
    return (tuple(field), True) if is_choice else (tuple(error["loc"]), False)


def capped(items: Sequence[T], describe: Callable[[T], Problem]) -> list[Problem]:
    """The first problems, and the number of the others."""
    shown = [describe(item) for item in items[:_MOST_PROBLEMS]]
    if more := len(items) - len(shown):
        shown.append(Problem("", f"and {more:,} more problems; correct these first"))
    return shown


def _problem(model: type[BaseModel], prefix: tuple[str, ...], item: Any) -> Problem:
    path = ".".join(str(part) for part in (*prefix, *item["loc"]))
    message = described(item)
    if item["type"] == "extra_forbidden":
        return Problem(path, unknown_field(model, item["loc"]))
    if item["type"] == "missing" or isinstance(item["input"], dict | list):
        return Problem(path, message)
    return Problem(path, f"{message}; got {storable(repr(item['input']), _LONGEST_INPUT)}{_cure(item)}")


def _cure(item: Any) -> str:
    """What to change where YAML reads a word as another type than the one meant."""
    if item["type"] == "string_type" and isinstance(item["input"], bool | int | float):
        return ". Put it in quotes to make it text."
    if item["type"] == "bool_type" and str(item["input"]).lower() in ("yes", "no", "on", "off"):
        return ". Write true or false."
    return ""


def described(item: Any) -> str:
    """What must hold, in the words of this project."""
    if (text := _BOUNDS.get(item["type"])) is not None:
        return text.format(**item["ctx"])
    if item["type"] == "string_pattern_mismatch" and item["ctx"]["pattern"] == NAME:
        return "must begin with a letter from a to z or a digit, followed by more of them, spaces, or any of . _ / -"
    message: str = item["msg"]
    return message.removeprefix("Value error, ")


def unknown_field(model: type[BaseModel], location: Sequence[str | int]) -> str:
    """What to say of a field that a document may not have: those it may have there, and which was probably meant.

    location: of the field within a document of this model, as pydantic's errors have it."""
    wrong = str(location[-1])
    known = sorted({name for one in _models_at(model, location[:-1]) for name in one.model_fields})
    meant = difflib.get_close_matches(wrong, known, 1)
    hint = f"did you mean {meant[0]}? " if meant else ""
    return f"is not a known field; {hint}it may be {', '.join(known)}" if known else "is not a known field"


def _models_at(model: type[BaseModel], location: Sequence[str | int]) -> list[type[BaseModel]]:
    """The models that a document may have there; of a union, all of them."""
    found = [model]
    for part in location:
        fields = [one.model_fields[str(part)].annotation for one in found if str(part) in one.model_fields]
        # An index into a list, or the name of a union's member, does not lead to another field.
        found = [inner for annotation in fields for inner in _models_in(annotation)] if fields else found
    return found


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [inner for argument in get_args(annotation) for inner in _models_in(argument)]
