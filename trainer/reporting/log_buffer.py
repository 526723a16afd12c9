"""Buffers the log lines of one process for the service: bounded in rate, size and number, and it says what it
dropped."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal, get_args

from syncnorm.trainer.contract.protocol import LogLine
from syncnorm.trainer.contract.text import storable

Level = Literal["DEBUG", "INFO", "WARNING", "ERROR"]

_LEVELS = get_args(Level)

LINES_A_S = 200.0
"""Lines a second of all processes of an attempt together; each has its share."""
BURST_S = 10.0
"""Burst: a process may log at once as much as it may log in this time."""
LEAST_A_S = 5.0
LONGEST_LINE = 8192
CHARACTERS_A_LINE = 256
LONGEST_TEXT = 1 << 20
LINES_A_MESSAGE = 500
CHARACTERS_A_MESSAGE = 128 * 1024
CHARACTERS_KEPT = 8 << 20
"""Kept while the service is unavailable; the oldest lines are dropped first."""


def cost_of(text: str) -> float:
    """Of a line, in lines: long ones count as several."""
    return max(1.0, min(len(text), LONGEST_LINE) / CHARACTERS_A_LINE)


class TokenBucket:
    """A token bucket: `per_s` a second, and the unused part of BURST_S at once."""

    def __init__(self, per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s, self._most, self._clock = per_s, per_s * BURST_S, clock
        self._left, self._at = self._most, clock()

    def take(self, cost: float) -> bool:
        now = self._clock()
        self._left = min(self._most, self._left + (now - self._at) * self._per_s)
        self._at = now
        if self._left < cost:
            return False
        self._left -= cost
        return True


class LogBuffer:
    """Accepts lines from any thread. Errors have a limit of their own, so that a flood of prints does not hide them."""

    def __init__(self, rank: int, processes: int, clock: Callable[[], float] = time.monotonic) -> None:
        """processes: of the attempt, which share LINES_A_S."""
        self._rank = rank
        self._per_s = max(LEAST_A_S, LINES_A_S / processes)
        self._buckets = {is_error: TokenBucket(self._per_s, clock) for is_error in (False, True)}
        self._lock = threading.Lock()
        self._lines: deque[LogLine] = deque()
        self._characters = 0
        self._seq = 0
        self._too_fast = self._too_many = 0

    def add(self, level: Level, text: str) -> None:
        level = level if level in _LEVELS else "INFO"
        with self._lock:
            for part in storable(text.rstrip("\n"), LONGEST_TEXT).split("\n"):
                if self._buckets[level == "ERROR"].take(cost_of(part)):
                    self._append(level, part)
                else:
                    self._too_fast += 1

    def batch(self) -> list[LogLine]:
        """The oldest lines, as many as fit into one message, with a line that counts the dropped ones."""
        with self._lock:
            self._append_gaps()
            lines: list[LogLine] = []
            size = 0
            for line in self._lines:
                size += len(line.text)
                if lines and (len(lines) == LINES_A_MESSAGE or size > CHARACTERS_A_MESSAGE):
                    break
                lines.append(line)
            return lines

    def forget(self, lines: list[LogLine]) -> None:
        """Forget lines that were delivered, or never will be."""
        with self._lock:
            while self._lines and self._lines[0].seq <= lines[-1].seq:
                self._characters -= len(self._lines.popleft().text)

    def __bool__(self) -> bool:
        return bool(self._lines) or self._too_fast > 0

    def _append(self, level: Level, text: str) -> None:
        self._seq += 1
        at = datetime.now(UTC).isoformat()
        line = LogLine(rank=self._rank, seq=self._seq, at=at, level=level, text=text)
        self._lines.append(line)
        self._characters += len(line.text)
        while self._characters > CHARACTERS_KEPT:
            self._characters -= len(self._lines.popleft().text)
            self._too_many += 1

    def _append_gaps(self) -> None:
        too_fast, too_many, self._too_fast, self._too_many = self._too_fast, self._too_many, 0, 0
        if too_fast:
            why = f"this process may log {self._per_s:g} a second. Print less often; the host's Ray logs have them all"
            self._append("WARNING", f"… {too_fast:,} lines dropped here: {why}.")
        if too_many:
            why = f"the service was unavailable, and {CHARACTERS_KEPT:,} characters are kept for it"
            self._append("WARNING", f"… {too_many:,} earlier lines dropped: {why}.")
