"""A LightningModule of the user is exported again, built as an attempt builds it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from syncnorm.trainer.contract.failure import FailureReason
from syncnorm.trainer.export.weights import DESCRIPTION_FILE, WEIGHTS_FILE
from syncnorm.trainer.storage.atomic_files import sha256_of
from syncnorm.trainer.training import checkpoints
from tests.helpers.norm.pool import Pool
from tests.helpers.trainer.ranks import train
from tests.trainer.conftest import Mlflow
from tests.trainer.driver.test_reexport import export

pytestmark = pytest.mark.filterwarnings("ignore")  # exporters and MLflow warn about their own internals

MODULES = "tests.helpers.trainer.own_modules"


def document(name: str, data: str = "Points", **section: Any) -> dict[str, Any]:
    return {
        "name": "own",
        "model": {"class_path": f"{MODULES}.{name}"},
        "data": {"class_path": f"{MODULES}.{data}"},
        "norm": {"kind": "sync_batch"},
        "train": {"epochs": 2, "keep_best": {"monitor": "val/loss"}, "keep_checkpoints": 3},
        "resources": {"workers": 2},
        "export": {"formats": ["pt2"], **section},
    }


def trained(ranks: Pool, job: Path, document: dict[str, Any]) -> Path:
    """The export folder of a job whose export failed: its weights alone, and its checkpoints beside them."""
    attempt = job / "attempts" / "1"
    attempt.mkdir(parents=True)
    state = ranks.run(train, 2, str(attempt), document)[0].state
    source = attempt / "export"
    source.mkdir()
    save_file(state, source / WEIGHTS_FILE)
    about = {"weights": {"sha256": sha256_of(source / WEIGHTS_FILE), "left_out": []}}
    (source / DESCRIPTION_FILE).write_text(json.dumps(about))
    return source


@pytest.mark.parametrize("name", ["Hooks", "BuiltLate", "BuiltInSetup", "TwoOptimizers", "SavesObjects"])
def test_own_module_is_exported_again_from_its_weights(
    name: str, ranks: Pool, mlflow_server: Mlflow, tmp_path: Path
) -> None:
    source = trained(ranks, tmp_path, document(name))

    result = export(mlflow_server, source, tmp_path / "2", document(name))

    assert result.outcome == "succeeded", result.message
    assert result.model is not None
    assert result.model.certificate["passed"]
    published, own = load_file(tmp_path / "2" / "export" / WEIGHTS_FILE), load_file(source / WEIGHTS_FILE)
    assert own.keys() == published.keys()
    assert all(torch.equal(tensor, published[path]) for path, tensor in own.items())


@pytest.mark.parametrize("name", ["Hooks", "BuiltLate", "SavesObjects"])
@pytest.mark.parametrize("section", [{"checkpoint": "best"}, {"checkpoint": 3}, {"statistics": "population"}])
def test_asked_checkpoint_of_an_own_module_is_exported(
    name: str, section: dict[str, Any], ranks: Pool, mlflow_server: Mlflow, tmp_path: Path
) -> None:
    source = trained(ranks, tmp_path, document(name))
    folder = tmp_path / "attempts" / "1" / "checkpoints"

    result = export(mlflow_server, source, tmp_path / "2", document(name, **section))

    assert result.outcome == "succeeded", result.message
    assert result.model is not None
    step = result.model.certificate["checkpoint"]["step"]
    state = checkpoints.load(folder / checkpoints.name_of(step), has_own_code=True)["state_dict"]
    published = load_file(tmp_path / "2" / "export" / WEIGHTS_FILE)
    is_recomputed = "statistics" in section
    assert result.model.certificate["statistics"]["used"] == ("population" if is_recomputed else "running")
    for path, tensor in published.items():
        if not (is_recomputed and "running_" in path):
            assert torch.equal(tensor, state[path]), path
    if is_recomputed:
        assert result.model.certificate["population"]["samples"] == 44  # the share of one worker is not enough


def test_module_whose_inputs_are_unclear_is_named(ranks: Pool, mlflow_server: Mlflow, tmp_path: Path) -> None:
    source = trained(ranks, tmp_path, document("TakesDicts", "Dicts"))

    result = export(mlflow_server, source, tmp_path / "2", document("TakesDicts", "Dicts", module="net.7"))

    assert (result.outcome, result.reason) == ("failed", FailureReason.EXPORT_MISMATCH)
    assert "export.module" in result.message
