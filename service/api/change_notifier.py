"""Wakes the followers in this process when something about their job has changed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator

from starlette.concurrency import run_in_threadpool

from syncnorm.service.backend_errors import DatabaseUnavailableError
from syncnorm.service.store import Changes, Heads

logger = logging.getLogger(__name__)

_POLL_S = 1.0
"""Longest time until a change by another process of the service is noticed."""


class ChangeNotifier:
    """Changes come from any thread, followers wait in an event loop. A missed wake-up costs a short delay.

    While a job is followed, one query a second for the newest rows finds changes of other processes. However many
    followers there are, those whose job does not change cost nothing.
    """

    def __init__(self, changes: Callable[[Heads | None], Changes]) -> None:
        """changes: which jobs have new events or log lines since the last look."""
        self._changes_since = changes
        self._lock = threading.Lock()
        self._followers: dict[str, set[tuple[asyncio.AbstractEventLoop, asyncio.Event]]] = defaultdict(set)
        self._watch: asyncio.Task[None] | None = None
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
        """An event that is set on each change. Clear it before each read."""
        loop = asyncio.get_running_loop()
        entry = (loop, asyncio.Event())
        with self._lock:
            self._followers[job_id].add(entry)
        if self._watch is None or self._watch.done() or self._watch.get_loop() is not loop:
            self._watch = loop.create_task(self._poll())
        try:
            yield entry[1]
        finally:
            with self._lock:
                self._followers[job_id].discard(entry)
                if not self._followers[job_id]:
                    del self._followers[job_id]

    async def _poll(self) -> None:
        """Poll until there are no followers left."""
        heads: Heads | None = None
        is_away = False
        while names := self._followed():
            try:
                changes = await run_in_threadpool(self._changes_since, heads)
            except DatabaseUnavailableError as error:
                if not is_away:
                    logger.warning("followers wait for the database", extra={"error": str(error)})
                is_away = True
            except Exception:
                logger.exception("could not read changes from the database; retrying")
            else:
                is_away = False
                # The first poll has nothing to compare with: wake every follower once.
                for name in names if heads is None else changes.job_ids & names:
                    self.changed(name)
                heads = changes.heads
            await asyncio.sleep(_POLL_S)

    def _followed(self) -> set[str]:
        with self._lock:
            return set() if self._closed else set(self._followers)

    def close(self) -> None:
        """End every follower."""
        names = self._followed()
        self._closed = True
        for name in names:
            self.changed(name)
