"""A storage under a URL that fsspec knows, with limits to how long anything takes."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import fsspec.asyn

from trainer.files import TEMPORARY, StorageError, sha256_of
from trainer.storage_faults import Fault, explain, fault_of

logger = logging.getLogger(__name__)
T = TypeVar("T")

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 8.0


@dataclass(frozen=True)
class Times:
    """How long one try may take: to connect, for each piece of an answer, and in all, with a second a MiB more."""

    connect_s: float
    read_s: float
    call_s: float


_PATIENT = Times(connect_s=5, read_s=30, call_s=40)
_IMPATIENT = Times(connect_s=3, read_s=8, call_s=10)
"""Of the service, whose every look must end within its lease."""


def _options(protocol: str, times: Times) -> dict[str, Any]:
    # A listing that is remembered would hide what other hosts write.
    options: dict[str, Any] = {"use_listings_cache": False}
    if protocol == "s3":
        # Tries and pauses are ours, so that their sum is known; those of botocore would multiply them.
        tries = {"retries": {"total_max_attempts": 1}}
        options["config_kwargs"] = {"connect_timeout": times.connect_s, "read_timeout": times.read_s, **tries}
    return options


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
        self._times = _PATIENT if patience_s > 0 else _IMPATIENT
        try:
            self._fs, self._path = fsspec.url_to_fs(self.root, **_options(url.partition("://")[0], self._times))
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
        self._tried(f"write {name}", lambda: self._limited(len(content), "pipe_file", self._at(name), content))

    def put(self, source: Path, name: str) -> None:
        self._tried(f"write {name}", lambda: self._put(source, name))

    def _put(self, source: Path, name: str) -> None:
        self._limited(source.stat().st_size, "put_file", str(source), self._at(name))
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
                self._limited(0, "rm", found)
                if left := self._fs.find(self._at(name)):  # s3fs says nothing of keys that were refused (2026.9)
                    raise PermissionError(f"{len(left)} of {len(found)} files are still there")

        self._tried(f"remove {name}", act)

    def _limited(self, size_bytes: int, method: str, *args: Any) -> None:
        """What sends a body, ended after a while: aiohttp waits for a server's leave to send without limit (3.14)."""
        if not self._fs.async_impl:
            getattr(self._fs, method)(*args)
            return

        async def call() -> None:
            async with asyncio.timeout(self._times.call_s + size_bytes / 2**20):
                await getattr(self._fs, f"_{method}")(*args)

        fsspec.asyn.sync(self._fs.loop, call)

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
