"""What a study's numbers leave out: which jobs have no value of a metric, and why. Pure."""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence

from syncnorm.service.studies.measures import SCORES, Outcome, matching, measure
from syncnorm.trainer.contract.text import counted, name_some

_DIVERGED, _NOT_FINITE, _NOT_LOGGED = "diverged", "not a finite number", "not logged"


def missing(outcomes: Sequence[Outcome], metric: str, known: Collection[str]) -> str:
    """A sentence about the jobs that have no value of a metric, or an empty text.

    known: all metrics of the study. A name that none of its jobs has gets the nearest of them.
    """
    without = [one for one in outcomes if measure(one, metric) is None]
    if not without:
        return ""
    name = metric.rpartition(":")[2]
    causes: dict[str, list[str]] = defaultdict(list)
    for one in without:
        causes[_cause(one, name)].append(f"{one.name} (seed {one.seed})")
    why = ", ".join(f"{len(jobs)} {cause}" for cause, jobs in causes.items())
    text = f"{metric} is missing in {counted(len(without), 'job')}: {why}."
    if _NOT_FINITE in causes:
        text += f" Not finite: {name_some(causes[_NOT_FINITE])}."
    return text + (_suggestion(name, known) if _NOT_LOGGED in causes else "")


def _cause(outcome: Outcome, name: str) -> str:
    if outcome.diverged:
        return _DIVERGED
    if outcome.state != "succeeded":
        return outcome.state
    return _NOT_LOGGED if outcome.not_finite.isdisjoint(matching(outcome, name)) else _NOT_FINITE


def _suggestion(name: str, known: Collection[str]) -> str:
    if name in known or "*" in name or not known:
        return ""
    near = difflib.get_close_matches(name, sorted(known), n=1)
    return f" Did you mean {near[0]}?" if near else f" The jobs have {name_some(sorted(known))}."


def metric_names(outcomes: Sequence[Outcome]) -> set[str]:
    """Everything that a metric of the study may name, without the curves of single layers."""
    return {name for one in outcomes for name in _names(one) if not name.startswith("z_")}


def _names(outcome: Outcome) -> Iterator[str]:
    for name in (*outcome.series, *outcome.not_finite, *outcome.values):
        yield name
        head, _, last = name.rpartition("/")
        if last in SCORES:
            yield f"{head}/error"
