"""Predictions of two runtimes are the same sets of boxes, or not."""

from __future__ import annotations

import numpy as np
import pytest

from syncnorm.trainer.export.certificate import compare_outputs
from syncnorm.trainer.export.detectors.box_sets import MARGIN

Outputs = dict[str, np.ndarray]


def outputs(seed: int = 0, boxes: int = 6) -> Outputs:
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 60, (boxes, 2))
    return {
        "[0]['boxes']": np.concatenate([corners, corners + rng.uniform(5, 20, (boxes, 2))], 1).astype(np.float32),
        "[0]['scores']": np.linspace(0.9, 0.1, boxes).astype(np.float32),
        "[0]['labels']": rng.integers(1, 3, boxes),
    }


def taken(given: Outputs, places: list[int]) -> Outputs:
    return {name: values[places] for name, values in given.items()}


def test_order_does_not_matter_and_images_are_counted() -> None:
    check = compare_outputs("onnxruntime", "held_out", [(outputs(), taken(outputs(), [3, 1, 0, 2, 5, 4]))] * 3)

    assert (check.passed, check.max_rel, check.samples) == (True, 0.0, 3)


def test_box_with_the_lowest_score_may_be_missing() -> None:
    near = outputs()
    near["[0]['scores']"][4] = near["[0]['scores']"][5] + MARGIN / 2

    assert compare_outputs("pt2", "held_out", [(near, taken(near, [0, 1, 2, 3, 5]))]).passed
    assert not compare_outputs("pt2", "held_out", [(outputs(), taken(outputs(), [0, 1, 2, 3, 5]))]).passed


@pytest.mark.parametrize(("name", "change"), [("boxes", 0.5), ("scores", 0.05), ("labels", 2)])
def test_another_box_is_noticed(name: str, change: float) -> None:
    other = outputs()
    other[f"[0]['{name}']"] = other[f"[0]['{name}']"] + np.asarray(change, other[f"[0]['{name}']"].dtype)

    assert not compare_outputs("pt2", "held_out", [(outputs(), other)]).passed


def test_values_that_are_not_finite_never_pass() -> None:
    other = outputs()
    other["[0]['boxes']"][0, 0] = np.nan

    check = compare_outputs("pt2", "held_out", [(outputs(), other)])

    assert (check.passed, check.max_rel) == (False, None)


def test_nothing_found_in_both_is_the_same() -> None:
    assert compare_outputs("pt2", "held_out", [(outputs(boxes=0), outputs(boxes=0))]).passed
    assert not compare_outputs("pt2", "held_out", [(outputs(), outputs(boxes=0))]).passed


def test_the_only_box_of_an_image_counts() -> None:
    """It has the lowest score of all, too."""
    one, other = outputs(boxes=1), outputs(seed=1, boxes=1)
    none = taken(one, [])

    assert compare_outputs("pt2", "held_out", [(one, one)]).passed
    for trained, candidate in ((one, other), (one, none), (none, one)):
        assert not compare_outputs("pt2", "held_out", [(trained, candidate)]).passed


def test_boxes_that_tie_at_the_end_of_a_list_may_be_others() -> None:
    one, other = outputs(boxes=6), outputs(seed=1, boxes=6)
    for each in (one, other):
        each["[0]['scores']"][:] = 0.05

    assert compare_outputs("pt2", "held_out", [(one, other)]).passed
