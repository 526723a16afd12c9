"""Rate limits for the reports of one attempt, in this process: one job must not slow down the others.

Workers keep to a lower rate by themselves (trainer/reporting). These limits are for those that don't.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from syncnorm.service.api.http.errors import ApiError
from syncnorm.trainer.contract.protocol import LogLine

_BURST_S = 10.0
_MESSAGES_A_S = 60.0
_HEARTBEATS_A_S = 1000.0
_LINES_A_S = 400.0
_EVENTS_A_S = 50.0
_MOST_BUCKETS = 10_000
_LEVEL = "WARNING"


@dataclass
class _Bucket:
    left: float
    at: float


class ReportLimits:
    """Token buckets, of messages, log lines and events, for each attempt."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: dict[tuple[str, str], _Bucket] = {}
        self._left_out: dict[str, int] = {}

    def message(self, token: str, path: str) -> None:
        """token: of the attempt, so that no attempt can use up another's limit. Raises: ApiError 429 with
        Retry-After."""
        kind, per_s = ("beat", _HEARTBEATS_A_S) if path == "heartbeat" else ("message", _MESSAGES_A_S)
        if not self._take(kind, token, 1, per_s):
            detail = f"The workers of an attempt may send {per_s:g} messages a second; try again in 1 s."
            raise ApiError(429, "rate_limited", detail, headers={"Retry-After": "1"})

    def event(self, token: str) -> bool:
        """Whether one more may be kept now."""
        return self._take("event", token, 1, _EVENTS_A_S) == 1

    def lines(self, token: str, lines: Sequence[LogLine]) -> list[LogLine]:
        """The lines within the limit, preceded by one that says how many were dropped."""
        taken = self._take("line", token, len(lines), _LINES_A_S)
        kept = list(lines[:taken])
        with self._lock:
            before = self._left_out.pop(token, 0)
            if missing := len(lines) - taken + (0 if kept else before):
                self._left_out[token] = missing
        if kept and before:
            text = f"… {before:,} lines dropped here: the workers of an attempt may log {_LINES_A_S:g} lines a second."
            kept[0] = kept[0].model_copy(update={"level": _LEVEL, "text": text})
        return kept

    def _take(self, kind: str, token: str, count: int, per_s: float) -> int:
        now, most = self._clock(), per_s * _BURST_S
        with self._lock:
            if len(self._buckets) >= _MOST_BUCKETS:
                self._buckets.clear()
                self._left_out.clear()
            bucket = self._buckets.setdefault((kind, token), _Bucket(most, now))
            bucket.left = min(most, bucket.left + (now - bucket.at) * per_s)
            bucket.at = now
            taken = min(count, int(bucket.left))
            bucket.left -= taken
        return taken
