"""Job files: YAML or JSON from disk, with single values set from the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 64 * 1024
MAX_DEPTH = 32
"""As of a body over REST."""


class SpecFileError(ValueError):
    """A job file that can't be read."""


class _Loader(yaml.SafeLoader):
    """Safe YAML without aliases, which can make a small file huge, nor deep nesting, of which 3,000 brackets take
    seconds; 1e-5 is a number, as in YAML 1.2."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise SpecFileError("a job file must not use YAML aliases (*name); write the value out")
        if self.depth > MAX_DEPTH:
            raise SpecFileError(f"a job file must not be nested deeper than {MAX_DEPTH}")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def load(path: Path, settings: Sequence[str]) -> dict[str, Any]:
    """The job in a file, with `key=value` settings laid over it, e.g. `norm.kind=group`.

    Raises: SpecFileError that says what is wrong where.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise SpecFileError(f"{path} can't be read: {error.strerror}") from error
    if len(raw) > MAX_BYTES:
        raise SpecFileError(f"{path} must not exceed {MAX_BYTES} bytes, got {len(raw)}")
    value = _parse(raw.decode("utf-8", "replace"), str(path))
    if not isinstance(value, dict):
        raise SpecFileError(f"{path} must hold one job as a mapping, got {type(value).__name__}")
    for setting in settings:
        _set(value, setting)
    return value


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except SpecFileError:
        raise
    except (yaml.YAMLError, ValueError) as error:  # a ValueError: of numbers and dates that are none
        raise SpecFileError(f"{where} is not YAML: {error}") from error


def _set(spec: dict[str, Any], setting: str) -> None:
    path, found, text = setting.partition("=")
    if not found or not path:
        raise SpecFileError(f"--set must be key=value, e.g. norm.kind=group; got {setting!r}")
    *parents, last = path.split(".")
    target = spec
    for name in parents:
        inner = target.setdefault(name, {})
        if not isinstance(inner, dict):
            raise SpecFileError(f"--set {path}: {name} is {inner!r}, which has no fields")
        target = inner
    target[last] = _parse(text, f"--set {path}")
