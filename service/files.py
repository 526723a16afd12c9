"""Files of attempts, on a local folder or any fsspec URL."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import fsspec
from pydantic import ValidationError

from trainer.attempt import EXPORT_FILE, LAUNCH_FILE, METRICS_FILE, RESULT_FILE, ExportRequest, Launch, Result


def is_url(path: str) -> bool:
    return "://" in path


def write_launch(folder: str, launch: Launch) -> None:
    """Write launch.json for the driver, readable by its owner alone. Writing the same again is harmless."""
    _write(folder, LAUNCH_FILE, launch.model_dump_json(indent=2))


def write_export(folder: str, request: ExportRequest) -> None:
    """Write export.json, as `write_launch` does."""
    _write(folder, EXPORT_FILE, request.model_dump_json(indent=2))


def _write(folder: str, name: str, text: str) -> None:
    if is_url(folder):
        with fsspec.open(f"{folder}/{name}", "w") as file:
            file.write(text)
        return
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    beside = path / f".{name}.new"
    beside.unlink(missing_ok=True)
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path / name)


def read_metrics(folder: str) -> list[str]:
    """Whole lines of an attempt's metrics, in order; none where there is no such file."""
    return (_read(folder, METRICS_FILE) or "").rpartition("\n")[0].splitlines()


def read_result(folder: str, fence: str) -> Result | None:
    """The result of an attempt, if it is complete and carries this fence."""
    text = _read(folder, RESULT_FILE)
    if text is None:
        return None
    try:
        result = Result.model_validate_json(text)
    except ValidationError:
        return None
    return result if result.fence == fence else None


def _read(folder: str, name: str) -> str | None:
    with contextlib.suppress(OSError):
        if is_url(folder):
            with fsspec.open(f"{folder}/{name}", "r") as file:
                text: str = file.read()
                return text
        return (Path(folder) / name).read_text()
    return None
