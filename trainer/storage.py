"""Where attempts keep what must outlive their processes: a folder that all hosts share, or an fsspec URL.

Both kinds answer alike, `tests/trainer/test_storage.py` asks them the same: a file is whole or not there, and "not
there" is never said of a storage that can't be asked.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import fsspec

from trainer.files import TEMPORARY, StorageError, sha256_of, write_atomic
from trainer.storage_faults import Fault, explain, fault_of

logger = logging.getLogger(__name__)
T = TypeVar("T")

# Tries and pauses are ours, so that their sum is known; those of botocore would multiply them.
_OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {"config_kwargs": {"connect_timeout": 5, "read_timeout": 30, "retries": {"total_max_attempts": 1}}},
}
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 8.0


class Storage(Protocol):
    """Files by their names relative to `root`, with slashes.

    Everything raises StorageError where the storage can't be asked or refuses, with what to change.
    """

    @property
    def root(self) -> str: ...

    def read(self, name: str) -> bytes:
        """Raises: FileNotFoundError."""

    def write(self, name: str, content: bytes, *, private: bool = False) -> None:
        """private: readable by its owner alone, where files have owners."""

    def put(self, source: Path, name: str) -> None:
        """A copy of `source`; returns once what arrived has its digest."""

    def get(self, name: str, target: Path) -> None:
        """A copy at `target`. Raises: FileNotFoundError."""

    def has(self, name: str) -> bool:
        """Whether there is a file."""

    def names(self, below: str = "") -> list[str]:
        """All files below a folder, sorted; none where there is no such folder."""

    def remove(self, name: str) -> None:
        """A file, or everything below a folder; what is not there is fine."""


def is_url(path: str) -> bool:
    return "://" in path


def storage_at(root: str, *, patience_s: float = 0.0) -> Storage:
    """patience_s: for how long what can't be reached is tried again; a folder has none."""
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
        except FileNotFoundError:
            raise
        except (IsADirectoryError, NotADirectoryError) as error:
            raise FileNotFoundError(f"{self.root}: can't {what}: {error}") from error
        except OSError as error:
            raise StorageError(f"the storage {self.root} can't {what}: {error}. Mend it, then retry.") from error


class Bucket:
    """Whatever fsspec reaches under a URL. Credentials are those of this host's environment, never ours to know.

    What can't be reached is tried again for `patience_s`; after that each call tries once, until one succeeds, so that
    a process that has given up is not held up again at every step of its end.
    """

    def __init__(
        self,
        url: str,
        *,
        patience_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.root = url.rstrip("/")
        self._patience_s = patience_s
        self._gave_up = False
        self._clock = clock
        self._sleep = sleep
        protocol = url.partition("://")[0]
        try:
            # A listing that is remembered would hide what other hosts write.
            options = {"use_listings_cache": False, **_OPTIONS.get(protocol, {})}
            self._fs, self._path = fsspec.url_to_fs(self.root, **options)
            if hasattr(self._fs, "retries"):
                self._fs.retries = 1  # of s3fs, which no argument sets (2026.9); gcsfs has its own and keeps them
        except (ImportError, ValueError) as error:
            raise StorageError(
                f"the storage {self.root} can't be used on this host: {error}. For s3:// and gs:// install the extras: "
                "pip install 'syncnorm[s3,gcs]'."
            ) from error

    def read(self, name: str) -> bytes:
        content: bytes = self._tried(f"read {name}", lambda: self._fs.cat_file(self._at(name)), may_miss=True)
        return content

    def write(self, name: str, content: bytes, *, private: bool = False) -> None:
        del private  # whoever may read the bucket
        self._tried(f"write {name}", lambda: self._fs.pipe_file(self._at(name), content))

    def put(self, source: Path, name: str) -> None:
        self._tried(f"write {name}", lambda: self._put(source, name))

    def _put(self, source: Path, name: str) -> None:
        self._fs.put_file(str(source), self._at(name))
        with self._fs.open(self._at(name), "rb") as file:
            arrived = hashlib.file_digest(file, "sha256").hexdigest()
        if arrived != sha256_of(source):
            raise ConnectionError("what arrived is not what was sent")

    def get(self, name: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f"{TEMPORARY}{target.name}")
        try:
            self._tried(f"read {name}", lambda: self._fs.get_file(self._at(name), str(beside)), may_miss=True)
            beside.replace(target)
        finally:
            beside.unlink(missing_ok=True)

    def has(self, name: str) -> bool:
        try:  # isfile() takes every error for a no
            facts = self._tried(f"look for {name}", lambda: self._fs.info(self._at(name)), may_miss=True)
        except FileNotFoundError:
            return False
        return bool(facts["type"] == "file")

    def names(self, below: str = "") -> list[str]:
        found = self._tried(f"list {below or 'its files'}", lambda: self._fs.find(self._at(below)), may_miss=True)
        inside = [str(path).removeprefix(self._path).lstrip("/") for path in found]
        files = [name for name in inside if not name.endswith("/")]  # consoles make such keys for folders
        return sorted(name for name in files if not below or name.startswith(f"{below.rstrip('/')}/"))

    def remove(self, name: str) -> None:
        def act() -> None:
            if found := self._fs.find(self._at(name)):
                self._fs.rm(found)
                if left := self._fs.find(self._at(name)):  # s3fs says nothing of keys that were refused (2026.9)
                    raise PermissionError(f"{len(left)} of {len(found)} files are still there")

        self._tried(f"remove {name}", act)

    def _at(self, name: str) -> str:
        return f"{self._path}/{name}".rstrip("/")

    def _tried(self, what: str, act: Callable[[], T], *, may_miss: bool = False) -> T:
        """What `act` answers, tried again while the storage is away.

        may_miss: that something is not there is an answer.

        Raises: FileNotFoundError (may_miss), StorageError.
        """
        began, pause_s = self._clock(), _FIRST_PAUSE_S
        while True:
            try:
                answer = act()
            except Exception as error:  # each of fsspec's file systems has its own
                fault = fault_of(error)
                if fault is Fault.MISSING and may_miss:
                    raise FileNotFoundError(f"{self.root}: can't {what}: it is not there") from error
                tried_s = self._clock() - began
                if fault is not Fault.AWAY or self._gave_up or tried_s + pause_s > self._patience_s:
                    self._gave_up = fault is Fault.AWAY
                    raise StorageError(explain(fault, self.root, what, error, tried_s)) from error
                if pause_s == _FIRST_PAUSE_S:
                    logger.warning("the storage %s is away, trying again to %s: %s", self.root, what, error)
                self._sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            else:
                self._gave_up = False
                return answer


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f"{TEMPORARY}{target.name}-{os.getpid()}")
    try:
        with source.open("rb") as original, beside.open("wb") as copy:
            shutil.copyfileobj(original, copy, 2**20)
            copy.flush()
            os.fsync(copy.fileno())
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)
