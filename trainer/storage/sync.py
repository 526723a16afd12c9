"""Which files of a process are on the job's storage, and which of the storage's files it has on this host.

If the storage is a folder, processes work in it and nothing is copied: `IN_PLACE`. If it is a URL, each process works
in a scratch folder of its own and `Mirrored` copies files both ways, by their places: below the scratch folder a file
has the path that it has behind the `://` of its URL.
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
"""How long an unavailable storage is retried. Shorter than the time ranks wait for each other by default."""
_ONE_CALL_S = 40.0
"""The last try may take as long as a connection and an answer may."""


class Mirror(Protocol):
    """Copies files between this host and the storage. Every method raises StorageError if it is unavailable."""

    longest_s: float
    """How long one file may delay its caller; 0 if nothing is copied."""
    workplace: str
    """Where processes work, for messages."""

    def local(self, name: str) -> Path:
        """The path on this host of a file or folder whose public name is `name`."""

    def name(self, path: Path) -> str:
        """Its public name: a path that all hosts share, or a URL."""

    def publish(self, path: Path) -> None:
        """Copy a file to the storage, as it is now. It is complete there when this returns."""

    def publish_all(self, folder: Path, last: str | None = None) -> None:
        """Publish the new files of a folder, `last` after all others."""

    def fetch(self, path: Path) -> None:
        """Fetch a file from the storage; if it does not exist there, delete it here."""

    def fetch_all(self, folder: Path) -> None:
        """Fetch all files of a folder."""

    def children(self, folder: Path) -> list[Path]:
        """Names directly in a folder on the storage, sorted."""

    def remove(self, path: Path) -> None:
        """Delete a file, or all files of a folder, from a storage that is elsewhere."""

    def forget(self, folder: Path) -> None:
        """Delete the local copy, if the storage is elsewhere."""

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
    """The storage is under a URL. base: the scratch folder of this process. where: any URL in its bucket."""

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
            return  # of another storage, as an operator may have changed it: use what is here
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
        root.mkdir(parents=True)  # on this host, so it may be created: nothing is missing a mount
        yield root, mirror
