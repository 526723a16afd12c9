"""How the metrics of a study are named. Pure.

`name`, or `reduction:name` to reduce its values over training, such as `max:val/loss`. A name with * is the mean over
all metrics that match, for example one of every layer. docs/reference/studies.md has the list.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

LAST = "last"
"""The reduction of a metric that names none."""
REDUCTIONS: dict[str, Callable[[Sequence[float]], float]] = {
    LAST: lambda values: values[-1],
    "first": lambda values: values[0],
    "min": min,
    "max": max,
    "mean": statistics.fmean,
}


def reduction_problem(metric: str) -> str | None:
    """What is wrong with the name of a metric."""
    reduction, colon, _ = metric.rpartition(":")
    if colon and reduction not in REDUCTIONS:
        return f"{reduction} is not a reduction; use one of {', '.join(REDUCTIONS)}, for example max:val/loss"
    return None
