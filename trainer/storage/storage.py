"""The storage that outlives the processes of attempts: a folder that all hosts share, or an fsspec URL.

Both kinds behave alike, and `test_storage.py` runs the same checks on both: a file is whole or missing, and a storage
that is unavailable never answers "missing".
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from syncnorm.trainer.errors import StorageError
from syncnorm.trainer.storage.atomic_files import TEMPORARY, write_atomic
from syncnorm.trainer.storage.entries import PIECE_BYTES, Entry, entries_inside, opened_inside
from syncnorm.trainer.storage.object_store import Bucket


class Storage(Protocol):
    """Files by their names relative to `root`, with slashes.

    Every method raises StorageError, with what to change, if the storage is unavailable or refuses.
    """

    @property
    def root(self) -> str: ...

    def read(self, name: str) -> bytes:
        """Raises: FileNotFoundError."""

    def write(self, name: str, content: bytes, *, private: bool = False) -> None:
        """private: readable by its owner alone, where files have owners."""

    def put(self, source: Path, name: str) -> None:
        """Copy `source` to the storage; returns once the stored content has its digest."""

    def get(self, name: str, target: Path) -> None:
        """A copy at `target`. Raises: FileNotFoundError."""

    def has(self, name: str) -> bool:
        """Whether there is a file."""

    def names(self, below: str = "") -> list[str]:
        """All files below a folder, sorted; empty if there is no such folder."""

    def entries(self, below: str) -> list[Entry]:
        """The same with their sizes. In a folder, links count as missing here and in `pieces`, so that a job can't
        point to files that are not its own."""

    def entry(self, name: str) -> Entry:
        """Raises: FileNotFoundError."""

    def pieces(self, name: str, start: int, end: int) -> Iterator[bytes]:
        """The bytes of a file from `start` up to `end`, in pieces of at most PIECE_BYTES.

        Raises: FileNotFoundError; StorageError, also if the file ends before `end`.
        """

    def remove(self, name: str) -> None:
        """Delete a file, or everything below a folder; a missing one is fine."""


def is_url(path: str) -> bool:
    return "://" in path


def storage_at(root: str, *, patience_s: float = 0.0) -> Storage:
    """The storage at a folder or URL. patience_s: how long an unavailable one is retried; a folder has none."""
    return Bucket(root, patience_s=patience_s) if is_url(root) else Folder(root)


@contextmanager
def local_copy(path: str, *, patience_s: float = 0.0) -> Iterator[Path]:
    """A file on this host with the content of `path`: itself, or of a URL a copy that goes with the block.

    Raises: FileNotFoundError; StorageError.
    """
    if not is_url(path):
        yield Path(path)
        return
    root, _, name = path.rpartition("/")
    with tempfile.TemporaryDirectory(prefix="syncnorm-") as folder:
        copy = Path(folder) / name
        storage_at(root, patience_s=patience_s).get(name, copy)
        yield copy


class Folder:
    """A folder that every host sees at the same path."""

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")
        self._path = Path(root)

    def read(self, name: str) -> bytes:
        with self._named_errors(f"read {name}"):
            return (self._path / name).read_bytes()

    def write(self, name: str, content: bytes, *, private: bool = False) -> None:
        with self._named_errors(f"write {name}"):
            write_atomic(self._path / name, content, private=private)

    def put(self, source: Path, name: str) -> None:
        with self._named_errors(f"write {name}"):
            _copy(source, self._path / name)

    def get(self, name: str, target: Path) -> None:
        with self._named_errors(f"read {name}"):
            _copy(self._path / name, target)

    def has(self, name: str) -> bool:
        try:  # is_file() takes every error for a no
            with self._named_errors(f"look for {name}"):
                return stat.S_ISREG((self._path / name).stat().st_mode)
        except FileNotFoundError:
            return False

    def names(self, below: str = "") -> list[str]:
        with self._named_errors(f"list {below or 'its files'}"):
            walk = os.walk(self._path / below, onerror=_raise_unless_gone)
            found = [(Path(folder) / name).relative_to(self._path) for folder, _, files in walk for name in files]
        return sorted(str(name) for name in found if not any(part.startswith(TEMPORARY) for part in name.parts))

    def entries(self, below: str) -> list[Entry]:
        with self._named_errors(f"list {below}"):
            return sorted(entries_inside(self._path, below), key=lambda one: one.name)

    def entry(self, name: str) -> Entry:
        with self._named_errors(f"look for {name}"), opened_inside(self._path, name) as file:
            return Entry.of(name, os.fstat(file))

    def pieces(self, name: str, start: int, end: int) -> Iterator[bytes]:
        with self._named_errors(f"read {name}"), opened_inside(self._path, name) as file:
            while start < end:
                piece = os.pread(file, min(PIECE_BYTES, end - start), start)
                if not piece:
                    raise StorageError(f"the storage {self.root} holds only {start} bytes of {name}, not {end}.")
                yield piece
                start += len(piece)

    def remove(self, name: str) -> None:
        path = self._path / name
        with self._named_errors(f"remove {name}"):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    @contextmanager
    def _named_errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, StorageError):
            raise
        except (IsADirectoryError, NotADirectoryError) as error:
            raise FileNotFoundError(f"{self.root}: can't {what}: {error}") from error
        except OSError as error:
            raise StorageError(f"the storage {self.root} can't {what}: {error}. Repair it, then retry.") from error


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{TEMPORARY}{target.name}-{os.getpid()}")
    try:
        with source.open("rb") as original, partial.open("wb") as copy:
            shutil.copyfileobj(original, copy, 2**20)
            copy.flush()
            os.fsync(copy.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
