"""Predictions of a detector compared as sets: their order, and which of two boxes at the end of the list is in, are
rounding. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
_LAST_KEYS = ("['boxes']", "['scores']", "['labels']")
MARGIN = 0.01
"""Boxes whose score is this close to the lowest one may be in one list and not in the other."""
FEW = 20
"""Lists as short as this are not cut to a greatest length. If they are equally long, they hold the same boxes."""


@dataclass(frozen=True)
class BoxSet:
    """What was found in one image: boxes (N, 4), scores (N,), labels (N,)."""

    boxes: Array
    scores: Array
    labels: Array


def box_sets(outputs: Mapping[str, Array]) -> dict[str, BoxSet]:
    """The sets by the place of their image in the output; empty where outputs are something else."""
    places = [name.removesuffix(_LAST_KEYS[0]) for name in outputs if name.endswith(_LAST_KEYS[0])]
    whole = [place for place in places if all(place + key in outputs for key in _LAST_KEYS)]
    return {place: BoxSet(*(outputs[place + key] for key in _LAST_KEYS)) for place in whole}


def difference(trained: BoxSet, candidate: BoxSet) -> tuple[float, float] | None:
    """(absolute, relative) greatest difference of the boxes and scores of both, each with the nearest of its class in
    the other; relative to the greatest coordinate, and of scores as they are. None: one has no such box."""
    if not (np.isfinite(candidate.boxes).all() and np.isfinite(candidate.scores).all()):
        return None
    worst_abs = worst_rel = 0.0
    scale = max(float(np.abs(trained.boxes).max(initial=1.0)), 1.0)
    for one, other in ((trained, candidate), (candidate, trained)):
        for index in _certain(one, other):
            if (found := _nearest(one, index, other, scale)) is None:
                return None
            worst_abs, worst_rel = max(worst_abs, found[0]), max(worst_rel, found[1])
    return worst_abs, worst_rel


def _certain(one: BoxSet, other: BoxSet) -> Iterator[int]:
    """Boxes that can't have fallen out of the other list by rounding."""
    count, others = len(one.scores), len(other.scores)
    least = min(float(each.scores.min(initial=np.inf)) for each in (one, other)) + MARGIN
    is_tied = max(int((each.scores <= least).sum()) for each in (one, other)) > 1
    if not others or (count == others <= FEW and not is_tied):
        return iter(range(count))
    return (index for index in range(count) if one.scores[index] > least)


def _nearest(one: BoxSet, index: int, other: BoxSet, scale: float) -> tuple[float, float] | None:
    same = np.flatnonzero(other.labels == one.labels[index])
    if not len(same):
        return None
    apart = np.abs(other.boxes[same] - one.boxes[index]).max(1)
    by_score = np.abs(other.scores[same] - one.scores[index])
    relative = np.maximum(apart / scale, by_score)
    nearest = int(relative.argmin())
    return float(max(apart[nearest], by_score[nearest])), float(relative[nearest])
