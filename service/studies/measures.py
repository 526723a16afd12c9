"""The measured values of a study's jobs, and how metrics are named. Pure."""

from __future__ import annotations

import fnmatch
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from syncnorm.service.jobs.study_metrics import LAST, REDUCTIONS
from syncnorm.service.jobs.study_spec import Point

Series = Mapping[str, Sequence[tuple[int, float]]]
"""Metric → (step, value), steps rising."""

ERROR, SCORES = "error", ("accuracy", "mean_iou", "dice", "map")
"""The error is 1 − the first of these that there is; of regression it is the mean absolute error itself."""
ABSOLUTE_ERROR = "mae"
DIVERGED = "non_finite"


@dataclass(frozen=True)
class Outcome:
    """A job of a study with its measurements. state: that of its job, or `deleted`."""

    number: int
    job_id: str
    name: str
    point: Point
    seed: int
    state: str
    reason: str | None = None
    message: str = ""
    run_url: str | None = None
    values: Mapping[str, float] = field(default_factory=dict)
    """Measured once, after training: scores with running and with population statistics."""
    series: Series = field(default_factory=dict)
    left_out: int = 0
    """Lines of its metrics that could not be read."""
    not_finite: frozenset[str] = frozenset()
    """Metrics whose last value is not finite, such as NaN: they have no last value."""

    @property
    def diverged(self) -> bool:
        return self.reason == DIVERGED


def curve(outcome: Outcome, metric: str) -> list[tuple[int, float]]:
    """(step, value) of a metric over training; `…/error` is 1 − the first of SCORES, or else `…/mae`."""
    if metric in outcome.series or metric in outcome.not_finite:
        return list(outcome.series.get(metric, ()))
    head, _, last = metric.rpartition("/")
    if last == ERROR:
        for score in SCORES:
            if points := outcome.series.get(f"{head}/{score}"):
                return [(step, 1 - value) for step, value in points]
        return list(outcome.series.get(f"{head}/{ABSOLUTE_ERROR}", []))
    return []


def measure(outcome: Outcome, metric: str) -> float | None:
    """The value of a metric; None if the job has none, or has not succeeded: part of a training is not the whole.

    metric: named as in `jobs.study_metrics`; without a reduction the last value is meant, and there is none if that is
    not finite. `running/val/…` and
    `population/val/…` are scores of the trained model with running and with population statistics. The error of a job
    whose training diverged is 1, because it classifies nothing; of regression, which has no greatest error, it is None.
    """
    reduction, _, name = metric.rpartition(":")
    if outcome.diverged and name.rpartition("/")[2] == ERROR:
        is_regression = any(one.rpartition("/")[2] == ABSOLUTE_ERROR for one in outcome.series)
        return None if is_regression else 1.0
    if outcome.state != "succeeded" and not outcome.diverged:
        return None
    if (value := _known(outcome.values, name)) is not None:
        return value
    names = matching(outcome, name)
    if (reduction or LAST) == LAST and not outcome.not_finite.isdisjoint(names):
        return None
    found = [_reduce(points, reduction or LAST) for one in names if (points := curve(outcome, one))]
    return statistics.fmean(found) if found else None


def matching(outcome: Outcome, name: str) -> list[str]:
    """The metrics that a name with * stands for; any other stands for itself."""
    return fnmatch.filter({*outcome.series, *outcome.not_finite}, name) if "*" in name else [name]


def _known(values: Mapping[str, float], name: str) -> float | None:
    if name in values:
        return values[name]
    head, _, last = name.rpartition("/")
    scores = [values[f"{head}/{score}"] for score in SCORES if f"{head}/{score}" in values]
    if last != ERROR:
        return None
    return 1 - scores[0] if scores else values.get(f"{head}/{ABSOLUTE_ERROR}")


def _reduce(points: Sequence[tuple[int, float]], reduction: str) -> float:
    return REDUCTIONS[reduction]([value for _, value in points])


def certificate_values(model: Mapping[str, Any] | None) -> dict[str, float]:
    """`running/val/…` and `population/val/…`, from the certificate of the exported model."""
    validation = ((model or {}).get("certificate") or {}).get("validation") or {}
    return {
        f"{statistics_}/{name}": float(value)
        for statistics_, scores in validation.items()
        for name, value in scores.items()
        if math.isfinite(float(value))
    }
