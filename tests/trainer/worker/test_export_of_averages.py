"""Averaged weights are exported with statistics of their own, and the certificate says which weights they are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from syncnorm.trainer.contract.protocol import Result
from syncnorm.trainer.driver import single_process
from syncnorm.trainer.training import checkpoints
from tests.helpers.trainer.few_digits import BATCH, TRAINING, few_digits
from tests.helpers.trainer.own_module_jobs import job
from tests.helpers.trainer.ranks import launch_of
from tests.trainer.conftest import Mlflow
from tests.trainer.driver.test_reexport import export

# Exporters and MLflow warn about their own internals.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def data() -> Iterator[None]:
    with few_digits():
        yield


def spec(**changes: Any) -> dict[str, Any]:
    return {
        "name": "averaged",
        "model": {"name": "cnn", "init_args": {"channels": [4, 8]}},
        "data": {"name": "digits", "batch_size": BATCH},
        "norm": {"kind": "batch"},
        "train": {
            "epochs": 3,
            "average": {"kind": "ema", "decay": 0.7},
            "checkpoint_every": {"steps": 2},
            "keep_checkpoints": 20,
        },
        "export": {"formats": ["onnx"]},
    } | changes


def finish(server: Mlflow, folder: Path, document: dict[str, Any], resume_from: Path | None = None) -> Result:
    """The whole of an attempt, in this process."""
    launch = launch_of(document).model_copy(update={"mlflow_uri": server.uri, "mlflow_run_id": server.new_run()})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "launch.json").write_text(launch.model_dump_json())
    config = {"folder": str(folder), "resume_from": str(resume_from) if resume_from else None, "patience_s": 0.0}
    return Result.model_validate(single_process.train(config))


def state(folder: Path, step: int, prefix: str = "network.") -> dict[str, torch.Tensor]:
    found = checkpoints.load(folder / "checkpoints" / checkpoints.name_of(step))["state_dict"]
    return {name.removeprefix(prefix): tensor for name, tensor in found.items()}


def assert_equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert [name for name, tensor in wanted.items() if not torch.equal(found[name], tensor)] == []


def test_average_of_the_last_step_is_exported_as_it_was_validated(mlflow_server: Mlflow, tmp_path: Path) -> None:
    result = finish(mlflow_server, tmp_path, spec())

    assert result.model is not None
    proof = result.model.certificate
    assert proof["passed"]
    assert proof["average"]["kind"] == "ema"
    assert proof["average"]["decay"] == 0.7
    assert proof["average"]["updates"] == 18
    assert proof["statistics"] == {
        "used": "population",
        "why": f"recomputed for the averaged weights over {TRAINING} samples",
    }
    assert proof["population"]["samples"] == TRAINING
    assert proof["validation"].keys() == {"population"}
    assert json.loads((tmp_path / "export" / "model.json").read_text())["average"] == proof["average"]
    assert_equal(load_file(tmp_path / "export" / "weights.safetensors"), state(tmp_path, 18))


def test_best_average_is_exported(mlflow_server: Mlflow, tmp_path: Path) -> None:
    document = spec(export={"formats": [], "checkpoint": "best"})
    document["train"] |= {"keep_best": {"mode": "max"}}  # the highest loss: that of the first epoch

    result = finish(mlflow_server, tmp_path, document)

    assert result.model is not None
    assert result.model.certificate["checkpoint"] == {"which": "best", "step": 6}
    assert result.model.certificate["average"]["updates"] == 6
    assert_equal(load_file(tmp_path / "export" / "weights.safetensors"), state(tmp_path, 6))


def test_weights_from_before_the_average_are_exported_as_ever(mlflow_server: Mlflow, tmp_path: Path) -> None:
    document = spec(export={"formats": [], "checkpoint": "best"})
    document["train"] |= {"average": {"kind": "swa", "from": 0.9}, "keep_best": {"mode": "max"}}

    result = finish(mlflow_server, tmp_path, document)

    assert result.model is not None
    assert "average" not in result.model.certificate
    assert result.model.certificate["validation"].keys() == {"running", "population"}


def test_average_of_a_module_of_the_user_is_exported(mlflow_server: Mlflow, tmp_path: Path) -> None:
    document = job("Hooks", train={"epochs": 2, "average": {"kind": "swa", "from": 0.0}}, export={"formats": []})
    document["data"]["init_args"] = {"shuffle": True}

    result = finish(mlflow_server, tmp_path, document)

    assert result.model is not None
    assert result.model.certificate["average"]["updates"] == 12
    assert result.model.certificate["population"]["samples"] == 44
    assert_equal(load_file(tmp_path / "export" / "weights.safetensors"), state(tmp_path, 12, prefix=""))


def test_average_of_a_network_in_double_with_frozen_layers_is_exported(mlflow_server: Mlflow, tmp_path: Path) -> None:
    document = spec()
    document["model"]["freeze"] = ["features.0", "features.1"]
    document["train"] |= {"precision": "64-true"}

    result = finish(mlflow_server, tmp_path, document)

    assert result.model is not None
    assert result.model.certificate["passed"]
    assert set(result.model.certificate["population"]["mean_abs"]) == set(kept_layers(tmp_path)) - {"features.1"}
    found = load_file(tmp_path / "export" / "weights.safetensors")
    assert torch.equal(found["features.1.running_mean"], torch.zeros(4))


def kept_layers(folder: Path) -> list[str]:
    return [name.removesuffix(".running_mean") for name in state(folder, 18) if name.endswith(".running_mean")]


@pytest.mark.parametrize("step", [4, 6])
def test_later_export_of_a_checkpoint_has_statistics_of_its_average(
    step: int, mlflow_server: Mlflow, tmp_path: Path
) -> None:
    """Within an epoch they are recomputed; at its end they are in the checkpoint."""
    attempt = tmp_path / "1"
    finish(mlflow_server, attempt, spec())
    document = spec(export={"formats": [], "checkpoint": step})

    result = export(mlflow_server, attempt / "export", tmp_path / "2", document)

    assert result.outcome == "succeeded", result.message
    assert result.model is not None
    assert result.model.certificate["average"]["updates"] == step
    assert result.model.certificate["statistics"]["used"] == "population"
    found, saved = load_file(tmp_path / "2" / "export" / "weights.safetensors"), state(attempt, step)
    assert torch.equal(found["features.0.weight"], saved["features.0.weight"])
    is_recomputed = not torch.equal(found["features.1.running_mean"], saved["features.1.running_mean"])
    assert is_recomputed == (step == 4)


@pytest.mark.parametrize("average", [None, {"kind": "ema", "decay": 0.7}])
def test_population_statistics_are_of_all_samples_wherever_training_ends(
    average: dict[str, Any] | None, mlflow_server: Mlflow, tmp_path: Path
) -> None:
    """In the middle of an epoch, and where an attempt has nothing left to train."""
    document = spec(train={"steps": 8, "average": average}, export={"formats": [], "statistics": "population"})

    first = finish(mlflow_server, tmp_path / "1", document)
    last = tmp_path / "1" / "checkpoints" / checkpoints.name_of(8)
    second = finish(mlflow_server, tmp_path / "2", document, resume_from=last)

    for result in (first, second):
        assert result.model is not None
        assert result.model.certificate["population"]["samples"] == TRAINING
    weights = [load_file(tmp_path / name / "export" / "weights.safetensors") for name in ("1", "2")]
    assert_equal(*weights)


@pytest.mark.parametrize("kind", ["group", "frozen_batch", "sync_batch"])
def test_network_is_exported_with_the_normalization_that_it_was_trained_with(
    kind: str, mlflow_server: Mlflow, tmp_path: Path
) -> None:
    """Its loss after the last epoch is that which finalizing finds again."""
    document = spec(norm={"kind": kind}, train={"epochs": 1}, export={"formats": [], "statistics": "running"})

    result = finish(mlflow_server, tmp_path, document)

    assert result.model is not None
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    (trained,) = [line["value"] for line in lines if line["key"] == "val/loss"]
    assert result.model.certificate["validation"]["running"]["val/loss"] == pytest.approx(trained, rel=1e-6)
