"""Files that are either whole or missing: written alongside, synced, renamed."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

TEMPORARY = ".tmp-"
"""Prefix of files that are not complete yet."""


def write_atomic(path: Path, content: bytes, *, private: bool = False) -> None:
    """Write `content` so that a reader, or a crash at any point, sees the old file or the new one, never a part.

    private: readable by its owner alone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{TEMPORARY}{path.name}-{os.getpid()}")
    partial.unlink(missing_ok=True)  # of an earlier process with this number, perhaps with another mode
    try:
        with os.fdopen(
            os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600 if private else 0o666), "wb"
        ) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_with(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Have `write` fill a new file at `path`, and sync it.

    For torch's writers: where a write fails, their zip archive aborts the whole process from its destructor (torch
    2.13). So they never see a failure; the first one is raised here, as the OSError it was.
    """
    file = path.open("wb")
    steady = _SteadyFile(file)
    try:
        write(steady)  # type: ignore[arg-type]  # write and flush are all that torch uses
        if steady.error is not None:
            raise steady.error
        file.flush()
        os.fsync(file.fileno())
    finally:
        with suppress(OSError):  # once more what could not be flushed above
            file.close()


class _SteadyFile:
    """Accepts every write as if it had succeeded, and keeps the first error."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        if self.error is None:
            try:
                self._file.write(data)
            except OSError as error:
                self.error = error
        return memoryview(data).nbytes

    def flush(self) -> None: ...


def describe_space(folder: Path) -> str:
    """`{free} of {total} MiB free`, or why that is unknown."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError as error:
        return str(error)
    return f"{usage.free / 2**20:.1f} of {usage.total / 2**20:.1f} MiB free"


def sync_folder(folder: Path) -> None:
    """Make renames within `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
