"""How long the reconciler waits between two ticks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

BRISK_S = 0.3
LIVELY_S = 10.0
"""Ray takes a second to notice that a driver has left, and longer until it reports the capacity as free."""


class PollInterval:
    """Slow while nothing changes, fast for LIVELY_S after an attempt has ended, since others wait for its capacity."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lively_until = clock()
        self._known: set[str] = set()

    def note_ended(self, ended: Iterable[str]) -> None:
        """Call it in each tick. ended: the attempts that have ended and still hold their capacity."""
        ended = set(ended)
        if ended - self._known:
            self._lively_until = self._clock() + LIVELY_S
        self._known = ended

    def pause_s(self, tick_s: float) -> float:
        return min(tick_s, BRISK_S) if self._clock() < self._lively_until else tick_s
