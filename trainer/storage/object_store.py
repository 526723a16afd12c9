"""A storage under a URL that fsspec knows, with limits on how long every call takes."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import fsspec.asyn

from syncnorm.trainer.errors import StorageAwayError, StorageError
from syncnorm.trainer.storage.atomic_files import TEMPORARY, sha256_of
from syncnorm.trainer.storage.entries import PIECE_BYTES, Entry
from syncnorm.trainer.storage.faults import NO_BUCKET, Fault, explain, fault_of
from syncnorm.trainer.storage.filesystems import AZURE, GOOGLE, INSTALL, Times, steady_filesystem_at

logger = logging.getLogger(__name__)
T = TypeVar("T")

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 8.0
_PATIENT = Times(connect_s=5, read_s=30, call_s=40)
_IMPATIENT = Times(connect_s=3, read_s=8, call_s=10)
"""Patience of the service, where every call must end within its lease."""
_BLOCK_BYTES = 16 * 2**20


class Bucket:
    """Any storage that fsspec reaches under a URL. Credentials come from this host's environment.

    An unavailable storage is retried for `patience_s`. After that each call tries once, until one succeeds, so that a
    process that has given up is not delayed again at every step of its end.
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
        self._times = _PATIENT if patience_s > 0 else _IMPATIENT
        # Only S3 says whether it is the bucket that does not exist.
        self._seen = url.partition("://")[0] not in GOOGLE | AZURE
        try:
            self._fs, self._path = steady_filesystem_at(self.root, self._times)
        except (ImportError, ValueError) as error:
            raise StorageError(
                f"the storage {self.root} can't be used on this host: {error}. {INSTALL} Credentials are those that "
                "the SDK of each finds on the host."
            ) from error

    def read(self, name: str) -> bytes:
        content: bytes = self._tried(f"read {name}", lambda: self._fs.cat_file(self._at(name)), may_miss=True)
        return content

    def write(self, name: str, content: bytes, *, private: bool = False) -> None:
        del private  # readable by everyone who may read the bucket
        self._tried(f"write {name}", lambda: self._limited(len(content), "pipe_file", self._at(name), content))

    def put(self, source: Path, name: str) -> None:
        self._tried(f"write {name}", lambda: self._put(source, name))

    def _put(self, source: Path, name: str) -> None:
        size_bytes, sent = source.stat().st_size, sha256_of(source)
        self._limited(size_bytes, "put_file", str(source), self._at(name))
        arrived = hashlib.sha256()
        for start in range(0, size_bytes, _BLOCK_BYTES):
            end = min(start + _BLOCK_BYTES, size_bytes)
            arrived.update(self._fs.cat_file(self._at(name), start=start, end=end))
        if self._limited(0, "info", self._at(name))["size"] != size_bytes or arrived.hexdigest() != sent:
            raise ConnectionError("the stored content differs from what was sent")

    def get(self, name: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{TEMPORARY}{target.name}")
        try:
            self._tried(f"read {name}", lambda: self._fs.get_file(self._at(name), str(partial)), may_miss=True)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    def has(self, name: str) -> bool:
        try:  # isfile() takes every error for a no
            facts = self._tried(f"look for {name}", lambda: self._limited(0, "info", self._at(name)), may_miss=True)
        except FileNotFoundError:
            return False
        return bool(facts["type"] == "file")

    def names(self, below: str = "") -> list[str]:
        found = self._tried(f"list {below or 'its files'}", lambda: self._find(below))
        inside = [str(path).removeprefix(self._path).lstrip("/") for path in found]
        files = [name for name in inside if not name.endswith("/")]  # consoles make such keys for folders
        return sorted(name for name in files if not below or name.startswith(f"{below.rstrip('/')}/"))

    def entries(self, below: str) -> list[Entry]:
        found = self._tried(f"list {below}", lambda: self._find(below, detail=True))
        names = {str(path).removeprefix(self._path).lstrip("/"): facts for path, facts in found.items()}
        inside = {name: facts for name, facts in names.items() if name.startswith(f"{below.rstrip('/')}/")}
        return [_entry(name, facts) for name, facts in sorted(inside.items()) if not name.endswith("/")]

    def entry(self, name: str) -> Entry:
        facts = self._tried(f"look for {name}", lambda: self._limited(0, "info", self._at(name)), may_miss=True)
        if facts["type"] != "file":
            raise FileNotFoundError(f"{self.root}: {name} is not a file")
        return _entry(name, facts)

    def pieces(self, name: str, start: int, end: int) -> Iterator[bytes]:
        for at in range(start, end, PIECE_BYTES):
            until = min(at + PIECE_BYTES, end)
            piece = self._tried(f"read {name}", lambda at=at, until=until: self._part(name, at, until), may_miss=True)  # type: ignore[misc]
            if len(piece) != until - at:
                raise StorageError(f"the storage {self.root} holds less of {name} than {end} bytes.")
            yield piece

    def _part(self, name: str, start: int, end: int) -> bytes:
        content: bytes = self._limited(end - start, "cat_file", self._at(name), start=start, end=end)
        return content

    def remove(self, name: str) -> None:
        def act() -> None:
            if found := self._find(name):
                with suppress(FileNotFoundError):  # gone meanwhile
                    self._limited(0, "rm", found)
                if left := self._find(name):  # s3fs says nothing of keys that were refused (2026.9)
                    raise PermissionError(f"{len(left)} of {len(found)} files still exist")

        self._tried(f"remove {name}", act)

    def _find(self, below: str, *, detail: bool = False) -> Any:
        """Paths, or with detail what is known of each."""
        found = self._limited(0, "find", self._at(below), withdirs=False, detail=detail)
        if not found:
            self._require_bucket()
        return found

    def _called(self, act: Callable[[], T]) -> T:
        try:
            return act()
        except FileNotFoundError:
            self._require_bucket()
            raise

    def _require_bucket(self) -> None:
        """A missing file may mean a missing bucket. Raises: FileNotFoundError that says so."""
        if self._seen:
            return
        bucket = self._path.partition("/")[0]
        try:
            self._limited(0, "ls", bucket)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{NO_BUCKET}: {bucket}") from error
        self._seen = True

    def _limited(self, size_bytes: int, method: str, *args: Any, **options: Any) -> Any:
        """Ends calls without a time limit of their own: for example, aiohttp waits for a server's permission to send a
        body without limit (3.14)."""
        if not self._fs.async_impl:
            return getattr(self._fs, method)(*args, **options)

        async def call() -> Any:
            async with asyncio.timeout(self._times.call_s + size_bytes / 2**20):
                return await getattr(self._fs, f"_{method}")(*args, **options)

        return fsspec.asyn.sync(self._fs.loop, call)

    def _at(self, name: str) -> str:
        return f"{self._path}/{name}".rstrip("/")

    def _tried(self, what: str, act: Callable[[], T], *, may_miss: bool = False) -> T:
        """The result of `act`, retried while the storage is unavailable. may_miss: a missing file is a valid answer.

        Raises: FileNotFoundError (may_miss), StorageError.
        """
        began, pause_s = self._clock(), _FIRST_PAUSE_S
        while True:
            try:
                answer = self._called(act)
            except Exception as error:  # each of fsspec's file systems has its own
                fault = fault_of(error)
                if fault is Fault.MISSING and may_miss:
                    raise FileNotFoundError(f"{self.root}: can't {what}: it does not exist") from error
                tried_s = self._clock() - began
                if fault is not Fault.AWAY or self._gave_up or tried_s + pause_s > self._patience_s:
                    self._gave_up = fault is Fault.AWAY
                    kind = StorageAwayError if fault is Fault.AWAY else StorageError
                    raise kind(explain(fault, self.root, what, error, tried_s)) from error
                if pause_s == _FIRST_PAUSE_S:
                    logger.warning("the storage %s is unavailable; retrying to %s: %s", self.root, what, error)
                self._sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            else:
                self._gave_up = False
                return answer


def _entry(name: str, facts: dict[str, Any]) -> Entry:
    """Of what an fsspec file system says of a file; each has a tag of its own kind."""
    tags = (facts.get(key) for key in ("ETag", "etag", "generation", "last_modified", "mtime"))
    return Entry(name, int(facts["size"] or 0), str(next((tag for tag in tags if tag), "")))
