"""Files of attempts on the storage, a folder or any fsspec URL. Raises StorageError if the storage is unavailable."""

from __future__ import annotations

from syncnorm.trainer.contract.protocol import (
    EXPORT_FILE,
    LAUNCH_FILE,
    METRICS_FILE,
    RESULT_FILE,
    ExportRequest,
    Launch,
    Result,
)
from syncnorm.trainer.contract.result_reader import parse_result
from syncnorm.trainer.storage.storage import storage_at


def write_launch(folder: str, launch: Launch) -> None:
    """Write launch.json for the driver, readable by its owner only. Writing it again is harmless."""
    storage_at(folder).write(LAUNCH_FILE, launch.model_dump_json(indent=2).encode(), private=True)


def write_export(folder: str, request: ExportRequest) -> None:
    """Write export.json, as `write_launch` does."""
    storage_at(folder).write(EXPORT_FILE, request.model_dump_json(indent=2).encode(), private=True)


def read_metrics(folder: str) -> list[str]:
    """Whole lines of an attempt's metrics, in order; empty without such a file. Any line may be damaged."""
    content = _read(folder, METRICS_FILE) or b""
    return [line for line in content.rpartition(b"\n")[0].decode(errors="replace").split("\n") if line]


def read_result(folder: str, fence: str) -> Result | None:
    """The result of an attempt, if it exists and carries this fence; a failure, if it exists and can't be read."""
    content = _read(folder, RESULT_FILE)
    return None if content is None else parse_result(content, fence)


def _read(folder: str, name: str) -> bytes | None:
    try:
        return storage_at(folder).read(name)
    except FileNotFoundError:
        return None
