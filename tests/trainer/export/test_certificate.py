"""The certificate passes only what answers as the trained model does."""

from __future__ import annotations

import numpy as np
import pytest

from syncnorm.trainer.export import certificate


@pytest.fixture
def outputs() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(8, 10)).astype(np.float32)


def test_rounding_passes(outputs: np.ndarray) -> None:
    check = certificate.compare("onnxruntime", "held_out", outputs, outputs * np.float32(1 + 1e-6))

    assert check.passed
    assert check.max_rel == pytest.approx(1e-6, rel=0.2)  # fp32 resolves 1e-7


def test_one_wrong_sample_among_many_fails(outputs: np.ndarray) -> None:
    wrong = outputs.copy()
    wrong[3] *= 1.001

    check = certificate.compare("eager", "held_out", outputs, wrong)

    assert not check.passed
    assert check.max_rel == pytest.approx(1e-3, rel=0.01)  # measured against that sample, not diluted by the others


def test_a_small_sample_is_not_hidden_behind_a_large_one(outputs: np.ndarray) -> None:
    outputs[0] *= 1e-3
    wrong = outputs.copy()
    wrong[0] *= 2

    assert not certificate.compare("eager", "held_out", outputs, wrong).passed


def test_rounding_of_a_sample_near_zero_passes() -> None:
    """As of a regression: one output, whose terms cancel each other."""
    outputs = np.random.default_rng(0).normal(size=(64, 1)).astype(np.float32)
    outputs[3] = 1e-4

    assert certificate.compare("onnxruntime", "held_out", outputs, outputs + np.float32(1e-6)).passed
    assert not certificate.compare("onnxruntime", "held_out", outputs, outputs + np.float32(1e-3)).passed


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_outputs_never_pass(outputs: np.ndarray, value: float) -> None:
    outputs[0, 0] = value

    assert not certificate.compare("eager", "held_out", outputs, outputs.copy()).passed


def test_another_shape_never_passes(outputs: np.ndarray) -> None:
    assert not certificate.compare("eager", "held_out", outputs, outputs[:, :5]).passed


def test_no_check_is_no_proof() -> None:
    assert not certificate.document(job_id="j", checks=[], files={}, facts={})["passed"]


def test_all_zero_outputs_equal_themselves() -> None:
    zeros = np.zeros((4, 3), np.float32)

    assert certificate.compare("eager", "held_out", zeros, zeros).passed


def labelled(scores: np.ndarray, differing: int, values: bool = True) -> certificate.Check:
    """A network of scores and a label for each, of which the candidate gives some others."""
    labels = scores > 0
    others = labels.copy()
    others[:differing] = ~others[:differing]
    trained, candidate = {"label": labels, "score": scores}, {"label": others, "score": scores}
    if not values:
        del trained["score"], candidate["score"]
    return certificate.compare_outputs("onnxruntime", "held_out", [(trained, candidate)])


def test_one_decision_on_its_border_may_differ_where_its_score_agrees(outputs: np.ndarray) -> None:
    one, two, alone = (labelled(outputs[:, 0], *case) for case in ((1,), (2,), (1, False)))

    assert (one.passed, one.differing) == (True, 1)
    assert (two.passed, two.max_rel, two.leaf) == (False, 2 / 8, "label")
    assert not alone.passed


def test_a_decision_counts_once_in_all_batches(outputs: np.ndarray) -> None:
    labels, scores = outputs[:, 0] > 0, outputs[:, 0]
    batch = ({"label": labels, "score": scores}, {"label": labels ^ (np.arange(8) == 3), "score": scores})

    assert not certificate.compare_outputs("onnxruntime", "held_out", [batch, batch]).passed


def test_few_pixels_of_a_mask_may_differ() -> None:
    mask = np.random.default_rng(0).integers(0, 3, (2, 100, 100))
    few, many = mask.copy(), mask.copy()
    few[0, 0, :20], many[0, 0, :21] = 3, 3

    checks = [certificate.compare_outputs("eager", "held_out", [({"": mask}, {"": one})]) for one in (few, many)]

    assert [(check.passed, check.differing) for check in checks] == [(True, 20), (False, 21)]


def test_mask_of_another_shape_never_passes() -> None:
    mask = np.zeros((2, 4), dtype=np.int64)

    assert not certificate.compare_outputs("eager", "held_out", [({"": mask}, {"": mask[:, :2]})]).passed
