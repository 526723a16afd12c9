"""Checks the claims of a study against its measured numbers. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Verdict = Literal["agrees", "does not agree", "undecided", "not measured"]

# Quantiles 0.975 of Student's t for 1 to 30 degrees of freedom (any table); beyond, the normal distribution's.
_T_975 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
_NORMAL_975 = 1.960

_LARGE = 1e12
Value = Annotated[float, Field(ge=-_LARGE, le=_LARGE)]
Whole = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
Label = Annotated[str, StringConstraints(max_length=4096)]
Axis = Annotated[str, StringConstraints(max_length=256)]
Where = Annotated[dict[Axis, Label | Whole | Value | bool], Field(max_length=8)]
Metric = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class Claim(BaseModel):
    """`metric` at `less` is below `than_metric` at `than`, or below `than_value`, by more than `by`, all else equal.

    Axes that none of less, than and where name are averaged over, within a seed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    text: Annotated[str, StringConstraints(min_length=1, max_length=400)]
    """The claim in words, as the report shows it. No default."""
    metric: Metric
    """Metric of the side that should be lower. No default."""
    than_metric: Metric | None = None
    """Metric of the other side. Default: null, the same."""
    than_value: Value | None = None
    """A fixed number instead of the other side, for example 0.05. Default: null, compare with `than`."""
    less: Where = {}
    """Values of axes on the side that should be lower, for example `{norm.kind: group}`. Default: none."""
    than: Where = {}
    """Values of axes on the other side, for example `{norm.kind: batch}`. Default: none."""
    where: Where = {}
    """Values of axes that both sides have in common. Default: none."""
    by: Value = 0.0
    """How far apart at least, in the metric's unit. A negative number lets `less` be worse by as much. Default: 0."""
    factor: Annotated[float, Field(gt=0, le=_LARGE)] = 1.0
    """The other side is multiplied by this, for example 0.1 for "a tenth of". Default: 1."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95 % confidence interval (Student's t); an interval needs two seeds."""

    mean: float
    std: float
    """Bessel-corrected."""
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Judgement:
    """A claim with the paired difference, less − factor · than, over seeds."""

    claim: Claim
    verdict: Verdict
    difference: Estimate | None
    less: float | None
    than: float | None
    limits: str = ""
    """What the numbers leave out, or what more it takes to decide, in words. Empty: nothing."""


def estimate(values: Sequence[float]) -> Estimate | None:
    """None without values. A value that is not finite makes the estimate not finite."""
    if not values:
        return None
    count = len(values)
    mean = math.fsum(values) / count if all(map(math.isfinite, values)) else math.nan
    if count == 1 or math.isnan(mean):
        return Estimate(mean, math.nan, math.nan, math.nan, count)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    t = _T_975[count - 2] if count - 2 < len(_T_975) else _NORMAL_975
    half = t * std / math.sqrt(count)
    return Estimate(mean, std, mean - half, mean + half, count)


def judge(claim: Claim, less: Mapping[int, float], than: Mapping[int, float]) -> Judgement:
    """less, than: value of each seed. Only seeds that both sides have count.

    agrees: the whole interval of the difference lies below −by. does not agree: none of it does. undecided: seeds
    differ too much, or there is only one, which has no interval.
    """
    seeds = [seed for seed in less if seed in than]
    found = estimate([less[seed] - claim.factor * than[seed] for seed in seeds])
    sides = [estimate([side[seed] for seed in seeds]) for side in (less, than)]
    if found is None or math.isnan(found.mean):
        return Judgement(claim, "not measured", None, None, None)
    verdict: Verdict = "undecided"
    if found.low >= -claim.by:
        verdict = "does not agree"
    elif found.high < -claim.by:
        verdict = "agrees"
    left, right = sides
    return Judgement(claim, verdict, found, left.mean if left else None, right.mean if right else None)
