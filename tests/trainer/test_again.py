"""A finished job is exported again, from the weights its certificate names, and under the same condition."""

from __future__ import annotations

import importlib
import json
import os
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.conftest import Mlflow
from trainer import again
from trainer.attempt import EXPORT_FILE, ExportRequest, Result
from trainer.certify import CERTIFICATE_FILE, Trained, export_and_compare
from trainer.conversion import convert
from trainer.data import build_data
from trainer.export import WEIGHTS_FILE
from trainer.failure import FailureReason
from trainer.files import sha256_of
from trainer.finalize import describe_network, held_out_samples
from trainer.models import build_model
from trainer.spec import ExportSpec
from trainer.spec_reader import read_spec

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
    """The first export of a job, without MLflow; its network has weights of its own."""
    spec, folder = read_spec(SPEC), tmp_path / "source"
    data = build_data(spec.data, spec.seed)
    torch.manual_seed(7)
    network, _ = convert(build_model(spec.model, spec.norm, data.info), spec, None)
    network(torch.randn(16, *data.info.shape))
    trained = Trained("j", network.eval(), held_out_samples(data), describe_network("j", spec, data), {}, 0)
    compared = export_and_compare(trained, ExportSpec(formats=[]), folder)
    (folder / CERTIFICATE_FILE).write_text(json.dumps({"files": compared.files, "validation": {"population": 1}}))
    return folder


def export(server: Mlflow, source: Path, folder: Path) -> Result:
    folder.mkdir()
    request = ExportRequest(
        name="2",
        job_id="j",
        fence="f",
        spec=read_spec(SPEC),
        source=str(source),
        mlflow_uri=server.uri,
        mlflow_run_id=server.new_run(),
    )
    (folder / EXPORT_FILE).write_text(request.model_dump_json())
    again.main(folder)
    return Result.model_validate_json((folder / "result.json").read_bytes())


def test_another_format_is_certified_and_registered(mlflow_server: Mlflow, source: Path, tmp_path: Path) -> None:
    result = export(mlflow_server, source, tmp_path / "2")

    assert result.outcome == "succeeded", result.message
    assert result.model is not None
    assert result.model.registered == "again/1"
    assert result.model.certificate["passed"]
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

    again._prepare(ExportRequest(**about, spec=read_spec(document), package=str(archive)), tmp_path / "2")

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
