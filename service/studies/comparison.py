"""The comparison table of a study: mean and spread over seeds, and paired differences. Pure."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from syncnorm.service.jobs.study_claims import Claim, Estimate, Judgement, Where, estimate, judge
from syncnorm.service.jobs.study_spec import Point, StudySpec, label_of
from syncnorm.service.studies.measures import Outcome, measure
from syncnorm.service.studies.missing import metric_names, missing

ONE_SEED = "One seed has no interval. Run more seeds to decide."


@dataclass(frozen=True)
class Row:
    """One place in the grid. estimates: by metric.

    differences: to the place with the first axis at its first value and everything else equal, paired by seed; by
    metric, empty for those places themselves.
    """

    point: Point
    outcomes: tuple[Outcome, ...]
    estimates: dict[str, Estimate | None]
    differences: dict[str, Estimate | None]

    @property
    def succeeded(self) -> int:
        return sum(outcome.state == "succeeded" for outcome in self.outcomes)

    @property
    def failed(self) -> int:
        return sum(outcome.state in ("failed", "cancelled", "deleted") for outcome in self.outcomes)


def table(study: StudySpec, outcomes: Sequence[Outcome]) -> list[Row]:
    """A row for every place in the grid, in its order."""
    places: dict[tuple[str, ...], list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        places[tuple(outcome.point.values())].append(outcome)
    first = outcomes[0].point[next(iter(study.grid))]
    return [
        _row(study, group, places[first, *place[1:]] if place[0] != first else []) for place, group in places.items()
    ]


def _row(study: StudySpec, group: Sequence[Outcome], reference: Sequence[Outcome]) -> Row:
    values = {metric: by_seed(group, metric) for metric in study.metrics}
    differences = {metric: _difference(values[metric], by_seed(reference, metric)) for metric in study.metrics}
    estimates = {metric: estimate(list(found.values())) for metric, found in values.items()}
    return Row(group[0].point, tuple(group), estimates, differences if reference else {})


def by_seed(outcomes: Sequence[Outcome], metric: str) -> dict[int, float]:
    """Seed → value; the mean over the places in the grid where there are several."""
    found: dict[int, list[float]] = defaultdict(list)
    for outcome in outcomes:
        if (value := measure(outcome, metric)) is not None:
            found[outcome.seed].append(value)
    return {seed: statistics.fmean(values) for seed, values in found.items()}


def _difference(values: Mapping[int, float], first: Mapping[int, float]) -> Estimate | None:
    return estimate([value - first[seed] for seed, value in values.items() if seed in first])


def judge_all(study: StudySpec, outcomes: Sequence[Outcome]) -> list[Judgement]:
    known = metric_names(outcomes)
    return [_judge(claim, outcomes, known) for claim in study.claims]


def _judge(claim: Claim, outcomes: Sequence[Outcome], known: Collection[str]) -> Judgement:
    """With what its numbers leave out."""
    sides = {claim.metric: select(outcomes, claim.less | claim.where)}
    less = by_seed(sides[claim.metric], claim.metric)
    than = dict.fromkeys(less, claim.than_value) if claim.than_value is not None else {}
    if claim.than_value is None:
        other = claim.than_metric or claim.metric
        compared = select(outcomes, claim.than | claim.where)
        than = by_seed(compared, other)
        sides[other] = [*sides.get(other, ()), *compared]
    found = judge(claim, less, than)
    limits = [text for metric, jobs in sides.items() if (text := missing(jobs, metric, known))]
    if found.difference is not None and found.difference.count == 1:
        limits.append(ONE_SEED)
    return replace(found, limits=" ".join(limits))


def select(outcomes: Sequence[Outcome], where: Where) -> list[Outcome]:
    """Those at a place in the grid; values are compared by the labels of the axes."""
    wanted = {axis: label_of(value) for axis, value in where.items()}
    return [one for one in outcomes if all(one.point.get(axis) == label for axis, label in wanted.items())]
