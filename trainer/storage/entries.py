"""Entries of a storage: files with their sizes.

In a folder that others may write to, only regular files count: no link, pipe or device in it leads to anything else.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from syncnorm.trainer.storage.atomic_files import TEMPORARY

PIECE_BYTES = 4 * 2**20
"""Most that is read of a file at once."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
# A pipe would keep its reader waiting for a writer.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK


@dataclass(frozen=True)
class Entry:
    """A file. version: changes with its content."""

    name: str
    size_bytes: int
    version: str

    @classmethod
    def of(cls, name: str, facts: os.stat_result) -> Entry:
        return cls(name, facts.st_size, f"{facts.st_ino}.{facts.st_mtime_ns}")


@contextmanager
def opened_inside(root: Path, name: str) -> Iterator[int]:
    """A descriptor of the regular file `name` below `root`. Raises: FileNotFoundError if there is none, OSError."""
    parts = PurePosixPath(name).parts
    with _folder_inside(root, parts[:-1]) as folder:
        try:
            file = os.open(parts[-1], _FILE, dir_fd=folder)
        except OSError as error:
            raise _as_missing(error, name) from error
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise FileNotFoundError(f"{name} is not a regular file")
            yield file
        finally:
            os.close(file)


def entries_inside(root: Path, below: str) -> Iterator[Entry]:
    """Every regular file below the folder `below` of `root`, by its name relative to `root`."""
    try:
        with _folder_inside(root, PurePosixPath(below).parts) as folder:
            for place, folders, names, at in os.fwalk(".", dir_fd=folder, follow_symlinks=False):
                folders[:] = [name for name in folders if not name.startswith(TEMPORARY)]
                for name in names:
                    facts = _facts(name, at)
                    if facts is not None:
                        yield Entry.of(str(PurePosixPath(below, place, name)), facts)
    except FileNotFoundError:
        return


def _facts(name: str, folder: int) -> os.stat_result | None:
    """None for what is no finished regular file, or was deleted meanwhile."""
    if name.startswith(TEMPORARY):
        return None
    try:
        facts = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return facts if stat.S_ISREG(facts.st_mode) else None


@contextmanager
def _folder_inside(root: Path, parts: tuple[str, ...]) -> Iterator[int]:
    """A descriptor of a folder, each part of whose path is a folder and no link."""
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in parts:
            if part in ("", ".", "..", "/"):
                raise FileNotFoundError(f"{part!r} is not the name of a folder")
            try:
                inner = os.open(part, _FOLDER, dir_fd=folder)
            except OSError as error:
                raise _as_missing(error, part) from error
            os.close(folder)
            folder = inner
        yield folder
    finally:
        os.close(folder)


def _as_missing(error: OSError, name: str) -> OSError:
    """What is there, but is a link or something else that can't be opened as asked, counts as missing."""
    others = (NotADirectoryError, IsADirectoryError)
    is_other = isinstance(error, others) or error.errno in (errno.ELOOP, errno.ENXIO, errno.ENAMETOOLONG)
    return FileNotFoundError(f"there is no {name}") if is_other else error
