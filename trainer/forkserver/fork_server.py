"""Runs tasks in warm processes, and keeps their parent: started at the first task, replaced on changes."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from syncnorm.trainer.forkserver.fingerprint import fingerprint
from syncnorm.trainer.forkserver.parent_memory import Memory
from syncnorm.trainer.forkserver.parent_process import ForkError, ParentProcess

logger = logging.getLogger(__name__)

IDLE_S = 1800.0
"""A parent that was not needed for so long ends and gives its memory back."""
PAUSE_S = 60.0
"""After a parent failed to start, the next try waits so long."""
_MOST_REPLACED = 1
"""Parents that may finish their tasks after they were replaced; older ones are stopped."""


@dataclass(frozen=True)
class Task:
    """A module with `main(*arguments)`, and what its process gets. environment: all of its variables."""

    module: str
    arguments: Sequence[str]
    environment: Mapping[str, str]
    stdin: bytes


class ForkServer:
    """Thread-safe. modules: what the parent imports, none of it a user's."""

    def __init__(
        self, modules: Sequence[str], *, idle_s: float = IDLE_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._modules = tuple(modules)
        self._idle_s = idle_s
        self._clock = clock
        self._lock = threading.Lock()
        self._made_from = ""
        self._parent: ParentProcess | None = None
        self._starting: ParentProcess | None = None
        self._replaced: list[ParentProcess] = []
        self._not_before = -float("inf")
        self._is_closed = False

    def run(self, task: Task, timeout_s: float) -> bytes:
        """Standard output of a task that succeeded.

        Raises: ForkError if it must run in a process that starts anew; subprocess.TimeoutExpired.
        """
        parent = self._current(task.environment)
        with contextlib.ExitStack() as stack:
            streams = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(3)]
            streams[0].write(task.stdin)
            streams[0].seek(0)
            about = {
                "module": task.module,
                "arguments": list(task.arguments),
                "environment": dict(task.environment),
            }
            code = parent.run(about, streams, timeout_s)
            for stream in streams:
                stream.seek(0)
            if code != 0:
                said = streams[2].read().decode(errors="replace")
                raise ForkError(f"the forked process ended with exit code {code}: {said[-2000:]}")
            return streams[1].read()

    def memory(self) -> Memory:
        sizes = [parent.memory_bytes() for parent in self._all()]
        return Memory(sum(size > 0 for size in sizes), sum(sizes))

    def close(self) -> None:
        """End all parents and their tasks."""
        self._is_closed = True
        if (starting := self._starting) is not None:  # whoever waits for it holds the lock
            starting.kill()
        with self._lock:
            for parent in self._all():
                parent.stop()
            self._parent, self._replaced = None, []

    def _all(self) -> list[ParentProcess]:
        return [parent for parent in (*self._replaced, self._parent) if parent is not None]

    def _current(self, environment: Mapping[str, str]) -> ParentProcess:
        """The parent for this environment and the code on the disk. Raises: ForkError."""
        made_from = fingerprint(environment)
        with self._lock:
            if self._is_closed:
                raise ForkError("the service ends")
            if self._parent is not None and made_from == self._made_from and self._parent.is_alive():
                return self._parent
            self._retire()
            if self._clock() < self._not_before:
                raise ForkError(f"no parent could be started less than {PAUSE_S:g} s ago")
            return self._start(made_from, environment)

    def _start(self, made_from: str, environment: Mapping[str, str]) -> ParentProcess:
        parent = self._starting = ParentProcess(self._modules, environment, self._idle_s)
        try:
            parent.wait_ready()
        except ForkError:
            parent.stop()
            self._not_before = self._clock() + PAUSE_S
            raise
        finally:
            self._starting = None
        self._parent, self._made_from = parent, made_from
        logger.info("started a parent of warm processes", extra={"parent": parent.pid, "bytes": parent.memory_bytes()})
        return parent

    def _retire(self) -> None:
        """The present parent gets no more tasks."""
        if self._parent is not None:
            self._parent.release()
            self._replaced.append(self._parent)
            self._parent = None
        living = [parent for parent in self._replaced if parent.is_alive()][-_MOST_REPLACED:]
        for parent in self._replaced:
            if parent not in living:
                parent.stop()
        self._replaced = living


def is_supported() -> bool:
    """Whether this host has what parents need: Linux, with file descriptors of processes."""
    return sys.platform == "linux" and hasattr(os, "pidfd_open")
