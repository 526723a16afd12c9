"""Small parts of sentences."""

from __future__ import annotations

from collections.abc import Sequence


def counted(number: int, noun: str) -> str:
    """`1 sample`, `2 samples`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def name_some(names: Sequence[str], most: int = 3) -> str:
    """`a, b, c and 12 more`; names that are empty are left out."""
    named = ", ".join(filter(None, names[:most]))
    return named if len(names) <= most else f"{named} and {len(names) - most} more"
