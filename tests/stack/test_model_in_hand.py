"""From a job to a model in hand: its files come over the service, and plain torch answers as the exported form does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from syncnorm.service.client.client import Client
from syncnorm.trainer.contract.spec import ModelSpec, NormSpec
from syncnorm.trainer.data import DataInfo
from syncnorm.trainer.models import build_model
from tests.stack.conftest import Serving

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400)]

MODEL = {"name": "resnet", "init_args": {"depth": 8, "width": 8}}
JOB: dict[str, Any] = {
    "name": "in-hand",
    "model": MODEL,
    "data": {"name": "digits", "batch_size": 64},
    "norm": {"kind": "weight"},
    "optimizer": {"name": "sgd", "lr": 0.05},
    # The best epoch is that of the highest loss, so that it is another one than the last.
    "train": {"epochs": 3, "keep_best": {"monitor": "val/loss", "mode": "max"}, "keep_checkpoints": 3},
    "resources": {"workers": 1},
}


@pytest.fixture(scope="module")
def job(client: Client) -> dict[str, Any]:
    done = client.wait(client.submit(JOB), timeout_s=280)
    assert (done["state"], done["export"]["state"]) == ("succeeded", "certified"), done
    return done


def get(serving: Serving, *words: str) -> subprocess.CompletedProcess[str]:
    """`syncnorm get`, as a process of its own."""
    command = [sys.executable, "-m", "syncnorm.service.cli.main", "get", *words]
    return subprocess.run(
        command, env={"SYNCNORM_URL": str(serving.url()), "PATH": ""}, capture_output=True, text=True, check=False
    )


def answers_of_plain_torch(weights: Path, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Those of the built-in network, whose normalization nobody has converted."""
    network = build_model(
        ModelSpec.model_validate(MODEL), NormSpec(kind="weight"), DataInfo("classification", 10, (1, 8, 8))
    )
    network.load_state_dict(load_file(weights))
    with torch.no_grad():
        found: NDArray[np.float32] = network.eval()(torch.from_numpy(x)).numpy()
    return found


def answers_of_onnx(model: Path, x: NDArray[np.float32]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    found: NDArray[np.float32] = session.run(None, {"input": x})[0]
    return found


def test_checkpoints_say_what_was_measured(job: dict[str, Any], client: Client) -> None:
    found = client.checkpoints(job["id"])

    losses = {one["step"]: one["metrics"]["val/loss"] for one in found}
    assert len(losses) == 3
    assert losses[job["progress"]["step"]] == job["progress"]["metrics"]["val/loss"]
    assert [one["step"] for one in found if one["best"]] == [max(losses, key=lambda step: losses[step])]


@pytest.mark.parametrize("checkpoint", ["last", "best"])
def test_plain_weights_answer_as_the_exported_model(
    job: dict[str, Any], serving: Serving, tmp_path: Path, checkpoint: str
) -> None:
    x = np.random.default_rng(0).random((16, 1, 8, 8), np.float32)

    model = get(serving, job["id"], "--checkpoint", checkpoint, "-o", str(tmp_path))
    plain = get(serving, job["id"], "--checkpoint", checkpoint, "-o", str(tmp_path), "--plain")

    assert (model.returncode, plain.returncode) == (0, 0), model.stderr + plain.stderr
    about = json.loads((tmp_path / "model.json").read_text())
    assert about["checkpoint"]["which"] == checkpoint
    assert about["needs"].keys() >= {"python", "torch", "safetensors"}
    np.testing.assert_allclose(  # fp32, folded, another runtime
        answers_of_plain_torch(tmp_path / "plain.safetensors", x),
        answers_of_onnx(tmp_path / "model.onnx", x),
        rtol=1e-3,
        atol=1e-4,
    )


def test_files_of_the_job_are_those_of_its_run(job: dict[str, Any], client: Client, tmp_path: Path) -> None:
    found = {one["path"]: one for one in client.files(job)}

    assert found.keys() >= {"export/certificate.json", "spec.yaml", "plan.json", "norm/conversion.json"}
    assert not [path for path in found if "launch" in path or "result" in path]
    certified = job["model"]["certificate"]["files"]
    assert {path: one["digest"] for path, one in found.items() if path == "export/model.pt2"} == {
        "export/model.pt2": certified["model.pt2"]
    }
    assert client.download(job, "spec.yaml", tmp_path).read_text().startswith("name: in-hand")
