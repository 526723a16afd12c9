"""Which of the files that a process works on lie on the job's storage, and which of the storage's it has here.

Where the storage is a folder, processes work in it, and there is nothing to bring or take: `IN_PLACE`. Where it is a
URL, each process works in a scratch folder of its own, and `Mirrored` carries files to and fro, by their places: below
the scratch folder a file lies as it does behind the `://` of its URL.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from syncnorm.trainer.storage.atomic_files import TEMPORARY, describe_space
from syncnorm.trainer.storage.scratch import scratch
from syncnorm.trainer.storage.storage import Storage, is_url, storage_at

PATIENCE_S = 90.0
"""For how long a storage that is away is waited for. Shorter than the time ranks wait for each other by default."""
_ONE_CALL_S = 40.0
"""The last try may take as long as a connection and an answer may."""


class Mirror(Protocol):
    """Between files here and on the storage. Raises: StorageError where that can't be asked, from everything."""

    longest_s: float
    """How long one file may keep its caller; 0 where nothing is carried."""
    workplace: str
    """What it is that processes work in, for messages."""

    def local(self, name: str) -> Path:
        """Where a file or folder that others call `name` lies here."""

    def name(self, path: Path) -> str:
        """What others call it: a path that all hosts share, or a URL."""

    def publish(self, path: Path) -> None:
        """Have a file on the storage, as it is now. It is there, and whole, when this returns."""

    def publish_all(self, folder: Path, last: str | None = None) -> None:
        """Publish what is new in a folder, the file `last` after all others."""

    def fetch(self, path: Path) -> None:
        """Have a file here as it is on the storage: not at all, where it is not there."""

    def fetch_all(self, folder: Path) -> None:
        """Have all files of a folder here."""

    def children(self, folder: Path) -> list[Path]:
        """What lies directly in a folder on the storage, sorted."""

    def remove(self, path: Path) -> None:
        """Take a file, or all files of a folder, off a storage that is elsewhere."""

    def forget(self, folder: Path) -> None:
        """Give the room here back, where that is not the storage."""

    def describe(self, folder: Path) -> str:
        """The storage of a folder in a message: how full it is, or its URL."""


class InPlace:
    """The storage is a folder, and work is done in it."""

    longest_s = 0.0
    workplace = "the job's storage"

    def local(self, name: str) -> Path:
        return Path(name)

    def name(self, path: Path) -> str:
        return str(path)

    def publish(self, path: Path) -> None: ...

    def publish_all(self, folder: Path, last: str | None = None) -> None: ...

    def fetch(self, path: Path) -> None: ...

    def fetch_all(self, folder: Path) -> None: ...

    def children(self, folder: Path) -> list[Path]:
        return sorted(folder.glob("*"))

    def remove(self, path: Path) -> None: ...

    def forget(self, folder: Path) -> None: ...

    def describe(self, folder: Path) -> str:
        return describe_space(folder)


IN_PLACE = InPlace()


class Mirrored:
    """The storage lies under a URL. base: the scratch folder of this process. where: any URL in its bucket."""

    workplace = "the scratch folder of each rank (SYNCNORM_SCRATCH on the host names another place)"

    def __init__(self, base: Path, where: str, *, patience_s: float) -> None:
        scheme, _, rest = where.partition("://")
        bucket = rest.lstrip("/").partition("/")[0]
        self._prefix = f"{scheme}://" + "/" * (len(rest) - len(rest.lstrip("/")))
        self._base = base
        self._top = base / bucket
        self._storage: Storage = storage_at(f"{self._prefix}{bucket}", patience_s=patience_s)
        self._published: dict[Path, tuple[int, int]] = {}
        self.longest_s = patience_s + _ONE_CALL_S

    def local(self, name: str) -> Path:
        return self._base / name.removeprefix(self._prefix).rstrip("/") if is_url(name) else Path(name)

    def name(self, path: Path) -> str:
        return f"{self._prefix}{path.relative_to(self._base)}" if path.is_relative_to(self._base) else str(path)

    def publish(self, path: Path) -> None:
        self._storage.put(path, self._key(path))
        self._published[path] = _signature(path)

    def publish_all(self, folder: Path, last: str | None = None) -> None:
        found = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(TEMPORARY)]
        for path in sorted(found, key=lambda path: path.name == last):
            if self._published.get(path) != _signature(path):
                self.publish(path)

    def fetch(self, path: Path) -> None:
        if not path.is_relative_to(self._top):
            return  # of another storage, as an operator may have changed it: it is here or it is not
        try:
            self._storage.get(self._key(path), path)
        except FileNotFoundError:
            path.unlink(missing_ok=True)

    def fetch_all(self, folder: Path) -> None:
        if not folder.is_relative_to(self._top):
            return
        for name in self._storage.names(self._key(folder)):
            self.fetch(self._top / name)

    def children(self, folder: Path) -> list[Path]:
        names = self._storage.names(self._key(folder))
        return sorted({folder / (self._top / name).relative_to(folder).parts[0] for name in names})

    def remove(self, path: Path) -> None:
        self._storage.remove(self._key(path))

    def forget(self, folder: Path) -> None:
        if folder.is_relative_to(self._top):
            shutil.rmtree(folder, ignore_errors=True)

    def describe(self, folder: Path) -> str:
        return self.name(folder)

    def _key(self, path: Path) -> str:
        return str(path.relative_to(self._top))


def _signature(path: Path) -> tuple[int, int]:
    facts = path.stat()
    return facts.st_mtime_ns, facts.st_size


@contextmanager
def workplace(where: str, *, patience_s: float = PATIENCE_S) -> Iterator[tuple[Path, Mirror]]:
    """The folder to work in for what `where` names, a folder or a URL, and its mirror."""
    if not is_url(where):
        yield Path(where), IN_PLACE
        return
    with scratch() as base:
        mirror = Mirrored(base, where, patience_s=patience_s)
        root = mirror.local(where)
        root.mkdir(parents=True)  # ours to make: it is on this host, so nothing that should be mounted
        yield root, mirror
