"""Arithmetic with times that never overflows: what lies beyond the last day of the calendar is that day."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any

NEVER = datetime.max.replace(tzinfo=UTC)
FIRST = datetime.min.replace(tzinfo=UTC)


def after(at: datetime, seconds: float) -> datetime:
    """`seconds` after `at`; NEVER where the calendar ends before, or where the number is none.

    >>> after(datetime(2026, 1, 1, tzinfo=UTC), 60).minute
    1
    >>> after(datetime(2026, 1, 1, tzinfo=UTC), 1e18) == NEVER
    True
    """
    try:
        return at + timedelta(seconds=seconds)
    except (OverflowError, ValueError):
        return FIRST if seconds < 0 else NEVER


def duration_s(value: Any) -> float | None:
    """A finite, non-negative number of seconds; None for anything else, such as "NaN" in a worker's message."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        seconds = float(value)
    except OverflowError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None
