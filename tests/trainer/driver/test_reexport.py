"""A finished job is exported again, from the weights its certificate names, and under the same condition."""

from __future__ import annotations

import importlib
import json
import os
import secrets
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from syncnorm.trainer.contract.failure import FailureReason
from syncnorm.trainer.contract.norm_choice import chosen_norm
from syncnorm.trainer.contract.protocol import EXPORT_FILE, ExportRequest, Result
from syncnorm.trainer.contract.spec import ExportSpec
from syncnorm.trainer.contract.spec_reader import read_spec
from syncnorm.trainer.data import build_data
from syncnorm.trainer.driver import reexport as again
from syncnorm.trainer.export.certification import CERTIFICATE_FILE
from syncnorm.trainer.export.weights import WEIGHTS_FILE, write_weights
from syncnorm.trainer.models import build_model
from syncnorm.trainer.storage.atomic_files import sha256_of
from syncnorm.trainer.storage.attempt_layout import AttemptFolders
from syncnorm.trainer.training import checkpoints
from syncnorm.trainer.training.conversion import convert
from syncnorm.trainer.worker.model_description import describe_network
from tests.helpers.paths import ROOT
from tests.helpers.trainer.answers import answering
from tests.trainer.conftest import Mlflow
from tests.trainer.worker.test_finalize import registered_models

# Exporters and MLflow warn about their own internals.
pytestmark = pytest.mark.filterwarnings("ignore")

SPEC: dict[str, Any] = {
    "name": "again",
    "model": {"name": "mlp", "init_args": {"hidden": [8]}},
    "data": {"name": "digits", "batch_size": 32},
    "export": {"formats": ["onnx"], "register_as": "again"},
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return first_export(SPEC, tmp_path / "source")


def first_export(document: dict[str, Any], folder: Path) -> Path:
    """The first export of a job, without MLflow; its network has weights of its own."""
    spec = read_spec(document)
    data = build_data(spec.data, spec.seed)
    torch.manual_seed(7)
    network, _ = convert(build_model(spec.model, chosen_norm(spec), data.info), spec, None)
    network(torch.randn(16, *data.info.shape))
    written = write_weights(network.eval(), describe_network("j", spec, data), folder)
    files = {path.name: sha256_of(path) for path in written}
    proof = {"files": files, "validation": {"population": 1}, "windows": {"share": 0.5}}
    (folder / CERTIFICATE_FILE).write_text(json.dumps(proof))
    return folder


def write_request(folder: Path, source: Path, document: dict[str, Any], **about: str) -> None:
    folder.mkdir()
    known = {"name": "2", "job_id": "j", "fence": "f", "mlflow_uri": "", "mlflow_run_id": "", "token": "t"}
    section = ExportSpec.model_validate(document.get("export", {}))  # as the API reads it: with a step as checkpoint
    spec = read_spec({**document, "export": {}}).model_copy(update={"export": section})
    request = ExportRequest(**{**known, "spec": spec, "source": str(source), **about})
    (folder / EXPORT_FILE).write_text(request.model_dump_json())


def export(server: Mlflow, source: Path, folder: Path, document: dict[str, Any] = SPEC, **about: str) -> Result:
    write_request(folder, source, document, mlflow_uri=server.uri, mlflow_run_id=server.new_run(), **about)
    again.main(str(folder))
    return Result.model_validate_json((folder / "result.json").read_bytes())


def test_another_format_is_certified_and_registered(mlflow_server: Mlflow, source: Path, tmp_path: Path) -> None:
    result = export(mlflow_server, source, tmp_path / "2")

    assert result.outcome == "succeeded", result.message
    assert result.model is not None
    assert result.model.registered == "again/1"
    assert result.model.certificate["passed"]
    assert result.model.certificate["windows"] == {"share": 0.5}  # of the same weights
    files = result.model.certificate["files"]
    assert files[WEIGHTS_FILE] == sha256_of(source / WEIGHTS_FILE)
    assert "model.onnx" in files


def test_export_has_what_the_workers_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "code.zip"
    with zipfile.ZipFile(archive, "w") as package:
        package.writestr("net_of_test_again.py", "import os\nSIZE = int(os.environ['SIZE_OF_TEST_AGAIN'])\n")
    document = SPEC | {"code": {"package": f"sha256:{sha256_of(archive)}"}, "env": {"SIZE_OF_TEST_AGAIN": "3"}}
    about = {"name": "2", "job_id": "j", "fence": "f", "source": "", "mlflow_uri": "", "mlflow_run_id": ""}
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(os, "environ", dict(os.environ))

    again._prepare(
        ExportRequest(**about, spec=read_spec(document), package=str(archive)), AttemptFolders(tmp_path / "2")
    )

    assert importlib.import_module("net_of_test_again").SIZE == 3


def test_weights_that_are_not_those_of_the_certificate_are_refused(
    mlflow_server: Mlflow, source: Path, tmp_path: Path
) -> None:
    content = bytearray((source / WEIGHTS_FILE).read_bytes())
    content[-1] ^= 1
    (source / WEIGHTS_FILE).write_bytes(content)

    result = export(mlflow_server, source, tmp_path / "2")

    assert (result.outcome, result.reason) == ("failed", FailureReason.CHECKPOINT_CORRUPT)
    assert "must have the digest that its certificate names" in result.message


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job's folder: its export without a certificate, and checkpoints of two attempts."""
    attempts = tmp_path / "attempts"
    (attempts / "2").mkdir(parents=True)
    source = first_export(SPEC, attempts / "2" / "export")
    (source / CERTIFICATE_FILE).unlink()
    tensors = load_file(source / WEIGHTS_FILE)
    for attempt, step in ((1, 10), (1, 20), (2, 30)):
        (attempts / str(attempt)).mkdir(exist_ok=True)
        state = {
            "state_dict": {f"network.{name}": tensor + step for name, tensor in tensors.items()},
            "callbacks": {"CheckpointWriter": {"best": (0.1, 20)}, "Other": {"best": None}},
        }
        folder = attempts / str(attempt) / "checkpoints"
        checkpoints.write(folder, state, step=step, epoch=1, world_size=1, fence="f")
    return source


@pytest.mark.parametrize(
    ("section", "step"),
    [
        ({}, 0),
        ({"statistics": "running"}, 0),
        ({"checkpoint": "best"}, 20),
        ({"checkpoint": 10}, 10),
        ({"statistics": "population"}, 30),
    ],
)
def test_weights_of_the_asked_checkpoint_are_exported(
    mlflow_server: Mlflow, job: Path, tmp_path: Path, section: dict[str, Any], step: int
) -> None:
    document = SPEC | {"export": {"formats": ["pt2"], **section}, "train": {"keep_best": {"monitor": "val/loss"}}}

    result = export(mlflow_server, job, tmp_path / "2", document)

    assert result.outcome == "succeeded", result.message
    assert result.model is not None
    own, published = load_file(job / WEIGHTS_FILE), load_file(tmp_path / "2" / "export" / WEIGHTS_FILE)
    is_recomputed = section.get("statistics") == "population"
    for name, tensor in own.items():
        if not (is_recomputed and "running_" in name):
            assert torch.equal(published[name], tensor + step), name
    certificate = result.model.certificate
    assert certificate["statistics"]["used"] == ("population" if is_recomputed else "running")
    assert certificate["checkpoint"].get("step", 0) == step
    if is_recomputed:
        assert certificate["population"]["samples"] == 1438  # all of digits that are trained on


def test_checkpoint_that_is_gone_is_named(mlflow_server: Mlflow, job: Path, tmp_path: Path) -> None:
    result = export(mlflow_server, job, tmp_path / "2", SPEC | {"export": {"checkpoint": 15}})

    assert (result.outcome, result.reason) == ("failed", FailureReason.EXPORT_MISMATCH)
    assert "no checkpoint of step 15 any more; there is one of 10, 20, 30" in result.message


def test_start_that_was_given_up_registers_nothing(mlflow_server: Mlflow, source: Path, tmp_path: Path) -> None:
    name = "given up again"
    document = SPEC | {"export": {"formats": [], "register_as": name}}

    with answering(beats=(409,)) as service:
        result = export(mlflow_server, source, tmp_path / "2", document, service_url=service.url)

    assert (result.outcome, "a newer start has taken over" in result.message) == ("failed", True)
    assert service.asked == ["/internal/v1/exports/j/2/heartbeat"]
    assert name not in registered_models(mlflow_server)


NET = """
import logging, os, subprocess, sys
from torch import nn

def make(num_classes: int = 10) -> nn.Module:
    if secret := os.environ.get("HUB_TOKEN"):
        print("printed", secret)
        print("and as an error", secret, file=sys.stderr)
        logging.getLogger(__name__).warning("logged %s", secret)
        os.write(1, b"past Python " + secret.encode() + b"\\n")
        subprocess.run(["sh", "-c", "echo by a child $HUB_TOKEN"])
        raise ValueError("raised " + secret)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))
"""


def test_secret_that_user_code_prints_and_raises_arrives_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray keeps what a submission prints in files, for anybody who may ask Ray."""
    (tmp_path / "net_that_tells.py").write_text(NET)
    monkeypatch.syspath_prepend(tmp_path)
    document: dict[str, Any] = {**SPEC, "model": {"class_path": "net_that_tells.make"}}
    source, folder = first_export(document, tmp_path / "source"), tmp_path / "2"
    canary = f"canary-{secrets.token_hex(8)}"
    with answering({"HUB_TOKEN": canary}) as service:
        write_request(folder, source, document | {"env": {"HUB_TOKEN": {"secret": "HUB"}}}, service_url=service.url)

        command = [sys.executable, "-m", "syncnorm.trainer.driver.reexport", str(folder)]
        paths = os.pathsep.join([str(ROOT), str(tmp_path)])
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths}
        )

    printed = done.stdout + done.stderr
    for how in ("printed", "and as an error", "logged", "past Python", "by a child", "raised"):
        assert f"{how} ***" in printed, how
    assert "ValueError: raised ***" in Result.model_validate_json((folder / "result.json").read_bytes()).message
    assert canary not in printed
    assert [path for path in folder.rglob("*") if path.is_file() and canary.encode() in path.read_bytes()] == []
