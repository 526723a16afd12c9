"""Job and study files: YAML or JSON from disk or standard input, with values replaced by --set."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from syncnorm.service.cli.job_files.overrides import override
from syncnorm.service.cli.job_files.yaml_reader import SpecFileError, parse
from syncnorm.service.client.git_checkout import source_of

__all__ = ["MAX_BYTES", "SpecFileError", "code_folder_of", "load", "load_study", "load_with_source"]
MAX_BYTES = 64 * 1024
"""The limit for a body over REST."""
_STDIN = Path("-")


def load(path: Path, settings: Sequence[str] = (), what: str = "job") -> dict[str, Any]:
    """The job or study in a file (`-`: standard input), with `key=value` settings applied, for example
    `norm.kind=group`. A folder of code lies where the file says, seen from the file; that of a setting, from here.

    Raises: SpecFileError with what is wrong and where.
    """
    where = "standard input" if path == _STDIN else str(path)
    value = parse(_read(path, where), where)
    if value is None:
        raise SpecFileError(f"{where} is empty. A {what} file holds one {what}: see examples/ and the README.")
    if not isinstance(value, dict):
        got = "a list" if isinstance(value, list) else f"only {str(value)[:40]!r}"
        raise SpecFileError(f"{where} must hold one {what} as a mapping, a `key: value` in each line; got {got}.")
    _locate_code(value.get("base") if what == "study" else value, path.parent)
    for setting in settings:
        override(value, setting)
    return value


def load_with_source(path: Path, settings: Sequence[str] = ()) -> dict[str, Any]:
    """The job in a file, with the git checkout that it comes from, unless it has a `source` already."""
    job = load(path, settings)
    _add_source(job, path)
    return job


def load_study(path: Path, settings: Sequence[str] = ()) -> dict[str, Any]:
    """The study in a file, whose jobs get the git checkout that it comes from, as those of `load_with_source`."""
    study = load(path, settings, "study")
    if isinstance(base := study.get("base"), dict):  # else the service says what is wrong
        _add_source(base, path)
    return study


def code_folder_of(job: Any) -> str | None:
    """The folder that `code.package` names in place of a digest.

    >>> code_folder_of({"code": {"package": "../src"}})
    '../src'
    """
    code = job.get("code") if isinstance(job, dict) else None
    named = code.get("package") if isinstance(code, dict) else None
    return named if isinstance(named, str) and named.strip() and not named.startswith("sha256:") else None


def _locate_code(job: Any, folder: Path) -> None:
    if (named := code_folder_of(job)) is not None:
        job["code"]["package"] = str(folder / named)


def _add_source(job: dict[str, Any], path: Path) -> None:
    if "source" not in job and (source := source_of(path)) is not None:
        job["source"] = source


def _read(path: Path, where: str) -> str:
    try:
        if path == _STDIN:
            raw = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with path.open("rb") as file:
                raw = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise SpecFileError(f"{where} can't be read: {getattr(error, 'strerror', None) or error}.") from error
    if len(raw) > MAX_BYTES:
        raise SpecFileError(f"{where} must not exceed {MAX_BYTES} bytes.")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise SpecFileError(
            f"{where} must be UTF-8 text: line {line} holds the byte 0x{raw[error.start]:02x}."
        ) from error
