"""A result that is there is never taken for none, and NaN is a value of a metric."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from syncnorm.service.storage.attempt_files import read_result
from syncnorm.trainer.contract.failure import FailureReason
from syncnorm.trainer.contract.protocol import RESULT_FILE, ModelRecord, Result

MODEL = {"uri": "models:/m-1", "registered": None, "certificate": {"passed": True}}


def left(folder: Path, content: str | bytes) -> Result | None:
    """What the service reads where an attempt left this."""
    (folder / RESULT_FILE).write_bytes(content.encode() if isinstance(content, str) else content)
    return read_result(str(folder), "f")


def test_metrics_that_are_not_finite_survive_the_file(tmp_path: Path) -> None:
    metrics = {"val/dice": math.nan, "val/loss": math.inf, "val/gain": -math.inf, "val/accuracy": 0.5}
    record = ModelRecord(uri="u", registered=None, certificate={"validation": {"running": {"val/dice": math.nan}}})
    written = Result(fence="f", outcome="succeeded", metrics=metrics, model=record)

    found = left(tmp_path, written.model_dump_json())

    assert found is not None
    assert found.outcome == "succeeded"
    assert math.isnan(found.metrics.pop("val/dice"))
    assert found.metrics == {"val/loss": math.inf, "val/gain": -math.inf, "val/accuracy": 0.5}
    assert json.loads(written.model_dump_json(), parse_constant=pytest.fail)["metrics"]["val/dice"] == "NaN"


def test_result_of_a_version_that_wrote_null_is_read(tmp_path: Path) -> None:
    found = left(
        tmp_path, json.dumps({"fence": "f", "outcome": "succeeded", "metrics": {"val/dice": None}, "model": MODEL})
    )

    assert found is not None
    assert found.outcome == "succeeded"
    assert math.isnan(found.metrics["val/dice"])


@pytest.mark.parametrize(
    "odd",
    [
        {"metrics": {"val/dice": "high"}},
        {"metrics": 3},
        {"of_a_later_version": {"a": 1}},
        {"step": "many"},
        {"traceback": 5},
    ],
)
def test_field_that_cannot_be_read_does_not_undo_a_success(odd: dict[str, Any], tmp_path: Path) -> None:
    found = left(tmp_path, json.dumps({"fence": "f", "outcome": "succeeded", "model": MODEL, **odd}))

    assert found is not None
    assert found.outcome == "succeeded"
    assert next(iter(odd)) in found.message


@pytest.mark.parametrize(
    "content",
    ["", "\x00" * 100, '{"fence": "f", "outcome": "succ', "[]", '{"fence": "f", "outcome": "won"}', "[" * 100_000],
)
def test_result_that_cannot_be_read_is_said_to_be_there(content: str, tmp_path: Path) -> None:
    found = left(tmp_path, content)

    assert found is not None
    assert (found.outcome, found.reason) == ("failed", FailureReason.INTERNAL)
    assert "can't be read" in found.message


def test_result_of_another_attempt_is_none_of_this_one(tmp_path: Path) -> None:
    assert left(tmp_path, '{"fence": "another", "outcome": "succeeded"}') is None
    assert left(tmp_path, '{"fence": "another"}') is None


def test_no_file_is_no_result(tmp_path: Path) -> None:
    assert read_result(str(tmp_path), "f") is None
