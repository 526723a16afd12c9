"""Prepared volumes, kept in memory or on the host's disk up to a size."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np

_UNUSED_S = 24 * 3600.0
"""A volume on disk that nobody has opened for so long may be deleted for others."""


@dataclass(frozen=True, eq=False)
class Volume:
    """image: float32, (C, X, Y, Z). mask: uint8, (X, Y, Z). centres: (class, flat index) of voxels to centre patches
    on, of each class but 0 at most PER_CLASS drawn ones, int64, (K, 2)."""

    image: np.ndarray
    mask: np.ndarray
    centres: np.ndarray

    @property
    def size_bytes(self) -> int:
        return sum(getattr(self, field.name).nbytes for field in fields(self))


Make = Callable[[], Volume]


class Cache(Protocol):
    def get(self, key: str, make: Make) -> Volume:
        """The volume of this key; made, and kept if there is room for it."""
        ...


class NoCache:
    def get(self, key: str, make: Make) -> Volume:  # noqa: ARG002 - nothing is kept
        return make()


class MemoryCache:
    """Of one process: a process that it is sent to begins with an empty one.

    What does not fit is not kept, rather than taking turns: patches are drawn from all volumes alike, so that a volume
    that gives way to another would be read again as often.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes, self._kept, self._bytes = most_bytes, dict[str, Volume](), 0

    def get(self, key: str, make: Make) -> Volume:
        if (kept := self._kept.get(key)) is not None:
            return kept
        volume = make()
        if self._bytes + volume.size_bytes <= self._most_bytes:
            self._kept[key] = volume
            self._bytes += volume.size_bytes
        return volume

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_kept": {}, "_bytes": 0}


class DiskCache:
    """Of all processes of a user on a host, and of later jobs with the same files and settings. Volumes are mapped into
    memory, so that a patch reads its own part of a file."""

    def __init__(self, most_bytes: int, folder: Path | None = None) -> None:
        parent = Path(os.environ.get("SYNCNORM_SCRATCH") or tempfile.gettempdir())
        self._most_bytes, self._folder = most_bytes, folder or parent / f"syncnorm-volumes-{os.getuid()}"

    def get(self, key: str, make: Make) -> Volume:
        entry = self._folder / key
        if (kept := _open(entry)) is not None:
            return kept
        volume = make()
        if self._has_room(volume.size_bytes):
            self._write(entry, volume)
            return _open(entry) or volume
        return volume

    def _write(self, entry: Path, volume: Volume) -> None:
        """Renamed when it is whole. A process that was faster with the same volume wins."""
        made = Path(tempfile.mkdtemp(prefix=".", dir=self._folder))
        for field in fields(volume):
            np.save(made / f"{field.name}.npy", getattr(volume, field.name))
        try:
            made.rename(entry)
        except OSError:
            shutil.rmtree(made, ignore_errors=True)

    def _has_room(self, wanted: int) -> bool:
        """Whether so many bytes fit, after what is unused was deleted, the oldest first."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._folder.stat().st_uid != os.getuid():
            raise ValueError(f"data.init_args.cache: {self._folder} must be your own folder, got another user's.")
        entries = sorted((_used_at(entry), entry, _bytes_of(entry)) for entry in self._folder.iterdir())
        total = sum(size for _, _, size in entries)
        for used_at, entry, size in entries:
            if total + wanted <= self._most_bytes or used_at > time.time() - _UNUSED_S:
                break
            shutil.rmtree(entry, ignore_errors=True)
            total -= size
        return total + wanted <= self._most_bytes


def _open(entry: Path) -> Volume | None:
    try:
        volume = Volume(*(np.load(entry / f"{field.name}.npy", mmap_mode="r") for field in fields(Volume)))
        os.utime(entry)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return volume


def _used_at(entry: Path) -> float:
    with suppress(OSError):
        return entry.stat().st_mtime
    return 0.0


def _bytes_of(entry: Path) -> int:
    total = 0
    with suppress(OSError):
        total = sum(file.stat().st_size for file in entry.iterdir())
    return total
