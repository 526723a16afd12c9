"""How long the reconciler rests between two looks at the cluster."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

BRISK_S = 0.3
LIVELY_S = 10.0
"""Ray takes a second to notice that a driver has left, and some more until it reports the room as free."""


class PollInterval:
    """Slow while nothing is about to change, brisk for LIVELY_S after an attempt has ended: others want its room."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lively_until = clock()
        self._known: set[str] = set()

    def note_ended(self, ended: Iterable[str]) -> None:
        """Of each tick. ended: the attempts that have ended and still hold their room."""
        ended = set(ended)
        if ended - self._known:
            self._lively_until = self._clock() + LIVELY_S
        self._known = ended

    def pause_s(self, tick_s: float) -> float:
        return min(tick_s, BRISK_S) if self._clock() < self._lively_until else tick_s
