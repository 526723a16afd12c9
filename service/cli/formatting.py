"""Formats single values for people: numbers, times, durations, ages."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

WORTH_WAITING = 0.05
"""Share of a step from which on it is worth knowing which rank the others wait for. Less is noise."""
_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"))


def number(value: Any, form: str = ".6g") -> str:
    """A metric. One that isn't finite arrives as a word ("NaN"), or not at all."""
    if value is None:
        return "none"
    return format(value, form) if isinstance(value, int | float) else str(value)


def duration(seconds: float) -> str:
    """Minutes and seconds, as 1:05; of hours 1:01:05.

    >>> duration(65), duration(3665)
    ('1:05', '1:01:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def local_time(text: str | None) -> str:
    """A time of the service in the time zone of this terminal, with its name."""
    return "" if text is None else f"{datetime.fromisoformat(text).astimezone():%Y-%m-%d %H:%M:%S %Z}"


def age(text: str, now: datetime | None = None) -> str:
    """How long ago it was, in its largest unit.

    >>> age("2026-01-01T00:00:00Z", datetime(2026, 1, 1, 5, 59, tzinfo=UTC))
    '5 h'
    """
    seconds = max(0.0, ((now or datetime.now(UTC)) - datetime.fromisoformat(text)).total_seconds())
    for size, unit in _UNITS:
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return f"{seconds:.0f} s"


def took(job: Mapping[str, Any], now: datetime | None = None) -> str:
    """How long a job has run, from its start to its end or to now."""
    if job["started_at"] is None:
        return ""
    ended = datetime.fromisoformat(job["finished_at"]) if job["finished_at"] else now or datetime.now(UTC)
    return duration(max(0.0, (ended - datetime.fromisoformat(job["started_at"])).total_seconds()))


def slowest_rank(metrics: Mapping[str, Any]) -> str:
    """The rank that the others wait for, and how long; empty if they hardly wait.

    >>> slowest_rank({"norm/slowest_rank": 1.0, "norm/waiting_share": 0.312})
    'rank 1; the others wait for it during 31 % of a step'
    """
    rank, share = (metrics.get(f"norm/{name}") for name in ("slowest_rank", "waiting_share"))
    if not isinstance(rank, int | float) or not isinstance(share, int | float) or not share >= WORTH_WAITING:
        return ""
    return f"rank {rank:.0f}; the others wait for it during {share:.0%} of a step".replace("%", " %")


def progress(values: Mapping[str, Any]) -> str:
    """Percent and remaining time."""
    if values["percent"] is None:
        return ""
    left = "" if not values["eta_s"] else f"  {duration(values['eta_s'])} left"
    return f"{values['percent']:.0f} %{left}"


def finding_text(places: str, message: str, fix: str) -> str:
    """A finding as a line. A message that begins with its field does not get it twice.

    >>> finding_text("norm.kind", "sync_batch has no other worker to synchronize with.", "Use batch.")
    'norm.kind: sync_batch has no other worker to synchronize with. Use batch.'
    """
    text = f"{message} {fix}"
    begins_with_it = message.startswith((f"{places} ", f"{places}.", f"{places}:"))
    return text if not places or begins_with_it else f"{places}: {text}"
