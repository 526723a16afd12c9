"""Wakes followers in this process when something about their job changed."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import defaultdict
from collections.abc import Iterator


class Hub:
    """Changes come from any thread, followers wait in an event loop. A missed wake-up costs a short delay."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._followers: dict[str, set[tuple[asyncio.AbstractEventLoop, asyncio.Event]]] = defaultdict(set)
        self._closed = False

    @property
    def is_closed(self) -> bool:
        return self._closed

    def changed(self, job_id: str) -> None:
        with self._lock:
            followers = list(self._followers.get(job_id, ()))
        for loop, event in followers:
            with contextlib.suppress(RuntimeError):  # its loop has ended
                loop.call_soon_threadsafe(event.set)

    @contextlib.contextmanager
    def following(self, job_id: str) -> Iterator[asyncio.Event]:
        """An event that is set on each change; to be cleared before each look."""
        entry = (asyncio.get_running_loop(), asyncio.Event())
        with self._lock:
            self._followers[job_id].add(entry)
        try:
            yield entry[1]
        finally:
            with self._lock:
                self._followers[job_id].discard(entry)
                if not self._followers[job_id]:
                    del self._followers[job_id]

    def close(self) -> None:
        """Let every follower end."""
        self._closed = True
        with self._lock:
            names = list(self._followers)
        for name in names:
            self.changed(name)
