"""Only a model that was proven is published."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from torch import nn

import norm
from tests.trainer.conftest import Mlflow
from trainer.certify import Trained, certify_and_publish
from trainer.classify import ExportMismatchError
from trainer.publish import Publisher
from trainer.spec import ExportSpec

# Exporters and MLflow warn about their own internals.
pytestmark = pytest.mark.filterwarnings("ignore")


def trained(**changes: Any) -> Trained:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        norm.build("sync_batch", 8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )
    network(torch.randn(16, 1, 8, 8))  # running statistics of their own
    held_out = np.random.default_rng(0).normal(size=(70, 1, 8, 8)).astype(np.float32)
    known = {"job_id": "j", "network": network.eval(), "held_out": held_out, "description": {}, "facts": {}, "seed": 0}
    return Trained(**(known | changes))


def logged_models(server: Mlflow) -> list[str]:
    body = {"experiment_ids": ["0"]}
    found = httpx.post(f"{server.uri}/api/2.0/mlflow/logged-models/search", json=body).json()
    return [model["info"]["model_id"] for model in found.get("models", [])]


def registered_models(server: Mlflow) -> list[str]:
    found = httpx.get(f"{server.uri}/api/2.0/mlflow/registered-models/search").json()
    return [model["name"] for model in found.get("registered_models", [])]


def test_proven_model_is_logged_registered_and_certified(mlflow_server: Mlflow, tmp_path: Path) -> None:
    run = mlflow_server.new_run()

    record = certify_and_publish(
        trained(), ExportSpec(register_as="proven"), tmp_path, Publisher(mlflow_server.uri, run)
    )

    assert record.certificate["passed"]
    assert record.registered == "proven/1"
    assert {check["runtime"] for check in record.certificate["checks"]} == {
        "eager",
        "torch.export",
        "onnxruntime",
        "mlflow.pyfunc",
    }
    assert set(record.certificate["files"]) == {"weights.safetensors", "model.json", "model.pt2", "model.onnx"}


def test_corrupted_running_var_fails_the_certificate_and_nothing_is_published(
    mlflow_server: Mlflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, before = mlflow_server.new_run(), logged_models(mlflow_server)

    def corrupt(network: nn.Module) -> Any:
        damaged = copy.deepcopy(network)
        damaged[1].running_var[3] *= 4  # one channel of one layer, as a flipped exponent bit would
        return norm.folding.fold(damaged)

    monkeypatch.setattr(norm, "fold", corrupt)

    with pytest.raises(ExportMismatchError, match=r"must answer as the trained one: \w.* differs by .* relative"):
        certify_and_publish(trained(), ExportSpec(register_as="damaged"), tmp_path, Publisher(mlflow_server.uri, run))

    assert not json.loads((tmp_path / "certificate.json").read_text())["passed"]
    assert logged_models(mlflow_server) == before
    assert "damaged" not in registered_models(mlflow_server)


def test_model_whose_outputs_are_not_finite_is_not_published(mlflow_server: Mlflow, tmp_path: Path) -> None:
    broken = trained()
    with torch.no_grad():
        broken.network[5].weight[0, 0] = float("nan")

    with pytest.raises(ExportMismatchError, match="not finite"):
        certify_and_publish(broken, ExportSpec(), tmp_path, Publisher(mlflow_server.uri, mlflow_server.new_run()))
