"""How much a long form does: all of it, or the part that CHAOS_FRACTION names."""

from __future__ import annotations

import os


def amount(whole: int) -> int:
    """At least 1."""
    return max(1, round(whole * float(os.environ.get("CHAOS_FRACTION", "1"))))
