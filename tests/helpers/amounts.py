"""How much the short and the long forms do, and how Hypothesis makes up their stories."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings

SHORT = settings(
    derandomize=True,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate),
)
"""The same stories on every run, and no search for the smallest that fails: it may take longer than a test may."""
LONG = settings(SHORT, derandomize=False, phases=tuple(Phase))
"""Other stories on every run. Put the decorator that a failed one prints onto the test to repeat it."""


def amount(whole: int) -> int:
    """What a long form does: all of it, or the part that CHAOS_FRACTION names; at least 1."""
    return max(1, round(whole * float(os.environ.get("CHAOS_FRACTION", "1"))))
