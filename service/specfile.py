"""Job files: YAML or JSON from disk, with single values set from the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 64 * 1024


class SpecFileError(ValueError):
    """A job file that can't be read."""


class _Loader(yaml.SafeLoader):
    """Safe YAML without aliases, which can make a small file huge; 1e-5 is a number, as in YAML 1.2."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise SpecFileError("a job file must not use YAML aliases (*name); write the value out")
        return super().compose_node(parent, index)


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
    except (yaml.YAMLError, RecursionError) as error:
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
