"""A resumed attempt and the certificate say what the job started from, though only the first attempt has read it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from syncnorm.trainer.contract.initial_weights import LoadedWeights, PlacedTensor, WeightOrigin
from syncnorm.trainer.contract.plan import Inspection
from syncnorm.trainer.storage.attempt_layout import AttemptFolders
from syncnorm.trainer.weights.record import PLAN_FILE, lineage, resumed
from tests.helpers.trainer.tuned_jobs import launch

LOADED = LoadedWeights(
    origin=WeightOrigin(source="job job_1 step 7", digest="sha256:abc"),
    loaded=[PlacedTensor(name="conv.weight", shape=[4, 3])],
    dropped=[PlacedTensor(name="fc.weight", shape=[2, 4], why="model.init_from.drop")],
    left=[PlacedTensor(name="fc.weight", shape=[3, 4], why="model.init_from.drop")],
)


def with_plan(job: Path, attempt: int, content: str) -> AttemptFolders:
    folders = AttemptFolders(job / "attempts" / str(attempt))
    folders.artifacts.mkdir(parents=True)
    (folders.artifacts / PLAN_FILE).write_text(content)
    return folders


def plan_with(loaded: LoadedWeights | None) -> str:
    return json.dumps({"init_from": None if loaded is None else loaded.model_dump()})


def test_a_resumed_attempt_has_what_the_first_one_noted(tmp_path: Path) -> None:
    with_plan(tmp_path, 1, plan_with(LOADED))
    with_plan(tmp_path, 2, "damaged")
    third = AttemptFolders(tmp_path / "attempts" / "3")

    found = resumed(Inspection(conversion=[], findings=[]), launch(3, "checkpoint", file="w"), third)

    assert found.init_from == LOADED


def test_certificate_names_source_digest_and_what_is_not_from_there(tmp_path: Path) -> None:
    assert lineage(with_plan(tmp_path, 1, plan_with(LOADED)))["init_from"] == {
        "source": "job job_1 step 7",
        "digest": "sha256:abc",
        "key": None,
        "is_average_with_other_statistics": False,
        "loaded": 1,
        "dropped": ["fc.weight"],
        "left": ["fc.weight"],
    }


@pytest.mark.parametrize("content", [plan_with(None), "{}", "[]", "damaged"])
def test_a_job_that_started_from_nothing_has_no_lineage(content: str, tmp_path: Path) -> None:
    assert lineage(with_plan(tmp_path, 1, content)) == {}
