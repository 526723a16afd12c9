"""How a metric of a study is named. Pure.

`name`, or `reduction:name` with what is made of its values over training. A name with * is the mean over all metrics
that match, e.g. one of every layer. docs/reference/studies.md has the list.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

REDUCTIONS: dict[str, Callable[[Sequence[float]], float]] = {
    "last": lambda values: values[-1],
    "first": lambda values: values[0],
    "min": min,
    "max": max,
    "mean": statistics.fmean,
}


def reduction_problem(metric: str) -> str | None:
    """What is wrong with the name of a metric."""
    reduction, colon, _ = metric.rpartition(":")
    if colon and reduction not in REDUCTIONS:
        return f"{reduction} is no reduction; use one of {', '.join(REDUCTIONS)}, e.g. max:val/loss"
    return None
