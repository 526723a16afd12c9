"""`--set PATH=VALUE`: replaces one value of a job file."""

from __future__ import annotations

import itertools
import re
from typing import Any

from syncnorm.service.cli.job_files.yaml_reader import SpecFileError, parse, scalar

_HOW = '--set must be PATH=VALUE, for example norm.kind=group, norm.overrides[0].kind=layer or labels["a.b"]=x'
_STEP = re.compile(r"""\.?(?P<name>[^.\[\]="']+)|\[(?P<index>[0-9]{1,4})\]|\[(?P<quote>["'])(?P<key>.+?)(?P=quote)\]""")
_STRUCTURE = ("{", "[", '"', "'")

Step = str | int


def override(spec: dict[str, Any], setting: str) -> None:
    """Set one value in `spec`; what is missing on the way, or null, becomes a mapping.

    >>> spec = {"norm": {"overrides": [{"kind": "batch"}]}}
    >>> override(spec, "norm.overrides[0].kind=layer")
    >>> spec
    {'norm': {'overrides': [{'kind': 'layer'}]}}

    A key with dots that is there needs no quotes:

    >>> study = {"grid": {"norm.kind": ["batch"]}}
    >>> override(study, "grid.norm.kind=[group]")
    >>> study
    {'grid': {'norm.kind': ['group']}}

    Raises: SpecFileError.
    """
    steps, text = _read(setting)
    steps = _with_dots(spec, steps)
    target: Any = spec
    for at, step in enumerate(steps[:-1]):
        inner = _get(target, step, steps[:at])
        if inner is None:
            inner = [] if isinstance(steps[at + 1], int) else {}
            _put(target, step, inner, steps[:at])
        target = inner
    _put(target, steps[-1], _value(text, _name(steps)), steps[:-1])


def _with_dots(spec: Any, steps: list[Step]) -> list[Step]:
    """The steps with those joined that are one key of the file, such as `norm.kind` of a study's grid."""
    found: list[Step] = []
    target: Any = spec
    while steps:
        step, steps = _first_key(target, steps)
        found.append(step)
        is_there = (isinstance(target, dict) and step in target) or (
            isinstance(target, list) and isinstance(step, int) and step < len(target)
        )
        target = target[step] if is_there else None
    return found


def _first_key(target: Any, steps: list[Step]) -> tuple[Step, list[Step]]:
    """The longest key of a mapping that the next steps spell, and the rest."""
    names = list(itertools.takewhile(lambda step: isinstance(step, str), steps))
    for count in range(len(names), 1, -1):
        if isinstance(target, dict) and (key := ".".join(map(str, names[:count]))) in target:
            return key, steps[count:]
    return steps[0], steps[1:]


def _read(setting: str) -> tuple[list[Step], str]:
    steps: list[Step] = []
    at = 0
    while match := _STEP.match(setting, at):
        named = match["name"] or match["key"]
        steps.append(int(match["index"]) if named is None else named)
        at = match.end()
    if not steps or setting[at : at + 1] != "=" or setting.startswith("."):
        raise SpecFileError(f"{_HOW}; got {setting!r}.")
    if isinstance(steps[0], int):
        raise SpecFileError(f"{_HOW}; a job has no [{steps[0]}].")
    return steps, setting[at + 1 :]


def _value(text: str, name: str) -> Any:
    """A mapping, a list or quoted text is read as in a file. Anything else is a plain word or text."""
    if text.lstrip().startswith(_STRUCTURE):
        return parse(text, f"--set {name}")
    try:
        return scalar(text.strip())
    except ValueError as error:
        raise SpecFileError(f"--set {name}: {error}.") from error


def _get(target: Any, step: Step, way: list[Step]) -> Any:
    if isinstance(step, int):
        return target[step] if step < len(_list(target, step, way)) else None
    return _mapping(target, step, way).get(step)


def _put(target: Any, step: Step, value: Any, way: list[Step]) -> None:
    if isinstance(step, str):
        _mapping(target, step, way)[step] = value
    elif step < len(items := _list(target, step, way)):
        items[step] = value
    elif step == len(items):
        items.append(value)
    else:
        raise SpecFileError(
            f"--set {_name([*way, step])}: {_name(way)} has {len(items)} items; [{len(items)}] adds the next one."
        )


def _mapping(target: Any, step: Step, way: list[Step]) -> dict[str, Any]:
    if isinstance(target, list):
        raise SpecFileError(
            f"--set {_name([*way, step])}: {_name(way)} is a list; name an item, as in {_name(way)}[0]."
        )
    if not isinstance(target, dict):
        raise SpecFileError(f"--set {_name([*way, step])}: {_name(way)} is {target!r}, which has no fields.")
    return target


def _list(target: Any, step: int, way: list[Step]) -> list[Any]:
    if not isinstance(target, list):
        what = "a mapping" if isinstance(target, dict) else repr(target)
        raise SpecFileError(f"--set {_name([*way, step])}: {_name(way)} is {what}, which has no [{step}].")
    return target


def _name(steps: list[Step]) -> str:
    text = ""
    for step in steps:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += f'["{step}"]' if "." in step else f".{step}"
    return text.removeprefix(".")
