"""Deletes records of ended submissions on Ray, and finds running ones that belong to no job. Runs in the background."""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable, Collection

from syncnorm.service.background.loop import Loop
from syncnorm.service.integrations.ray_jobs import RayDispatcher
from syncnorm.service.jobs.attempt_ending import RayStatus

logger = logging.getLogger(__name__)

EVERY_S = 10.0
"""Pause between two lists of all submissions; longer if a list takes Ray long. Also the pause after a failure."""
_POLL_S = 1.0
_MOST_A_ROUND = 200
_LONGEST_SHARE = 0.05
"""Largest share of Ray's time that lists may take."""


class ClusterSweep:
    """Ray never forgets a submission by itself, and lists them more slowly the more there are.

    Only ended submissions of ours are deleted, and only those that `known` does not name: an attempt or export that has
    not released its capacity still needs Ray's state. Doing it twice, or in several replicas, is harmless.
    """

    def __init__(
        self, dispatcher: RayDispatcher, known: Callable[[], Collection[str]], first_rest_s: float = 0.0
    ) -> None:
        """first_rest_s: pause before the first look, such as until a Ray of our own has started."""
        self._first_rest_s = first_rest_s
        self._dispatcher = dispatcher
        self._known = known
        self._ended: list[str] = []
        self._next_list = 0.0
        self._rest_s = _POLL_S

    def loops(self) -> list[Loop]:
        return [Loop("cluster-sweep", self.tick, lambda: self._rest_s, first_rest_s=self._first_rest_s)]

    def tick(self) -> None:
        """Delete some records; list them all when it is time. Raises: UnreachableError."""
        self._rest_s = EVERY_S
        self._delete_forgotten()
        if not self._ended and time.monotonic() >= self._next_list:
            self._list()
        batch, self._ended = self._ended[:_MOST_A_ROUND], self._ended[_MOST_A_ROUND:]
        for submission_id in batch:
            self._dispatcher.delete(submission_id)
        if batch:
            logger.info("deleted ended submissions on Ray", extra={"count": len(batch), "remaining": len(self._ended)})
        self._rest_s = _POLL_S

    def _list(self) -> None:
        began = time.monotonic()
        found = self._dispatcher.list_all()
        took_s = time.monotonic() - began
        self._next_list = time.monotonic() + max(EVERY_S, took_s / _LONGEST_SHARE)
        known = set(self._known())  # read after the list: whatever was launched since is in neither
        unknown = {name: seen.status for name, seen in found.items() if name not in known}
        alive = (RayStatus.WAITING, RayStatus.RUNNING)
        self._dispatcher.strays = frozenset(name for name, status in unknown.items() if status in alive)
        self._ended = sorted(name for name, status in unknown.items() if status is RayStatus.ENDED)

    def _delete_forgotten(self) -> None:
        for _ in range(_MOST_A_ROUND):
            try:
                submission_id = self._dispatcher.forgotten.get_nowait()
            except queue.Empty:
                return
            self._dispatcher.delete(submission_id)
