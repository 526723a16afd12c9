"""Only a model that was proven is published."""

from __future__ import annotations

import copy
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from torch import nn

from syncnorm import norm
from syncnorm.norm.folding.fold import fold
from syncnorm.trainer.contract.protocol import ModelRecord
from syncnorm.trainer.contract.spec import ExportSpec
from syncnorm.trainer.errors import ExportMismatchError
from syncnorm.trainer.export.certification import Place, TrainedModel, certify_and_publish, publish_weights
from syncnorm.trainer.export.forward_inputs import ForwardInputs
from syncnorm.trainer.export.mlflow_publisher import Publisher
from tests.trainer.conftest import Mlflow

# Exporters and MLflow warn about their own internals.
pytestmark = pytest.mark.filterwarnings("ignore")


def trained(**changes: Any) -> TrainedModel:
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
    known = {
        "job_id": "j",
        "network": network.eval(),
        "held_out": [ForwardInputs((torch.from_numpy(held_out),))],
        "description": {},
        "facts": {},
        "seed": 0,
    }
    return TrainedModel(**(known | changes))


def published_model(
    model: TrainedModel, spec: ExportSpec, folder: Path, publisher: Publisher, name: str = "1"
) -> ModelRecord:
    """As a job and a later export do."""
    place = Place(folder, name)
    return certify_and_publish(model, spec, place, publisher, publish_weights(model, place, publisher))


def logged_models(server: Mlflow) -> list[str]:
    body = {"experiment_ids": ["0"]}
    found = httpx.post(f"{server.uri}/api/2.0/mlflow/logged-models/search", json=body, timeout=60).json()
    return [model["info"]["model_id"] for model in found.get("models", [])]


def registered_models(server: Mlflow) -> list[str]:
    found = httpx.get(f"{server.uri}/api/2.0/mlflow/registered-models/search", timeout=60).json()
    return [model["name"] for model in found.get("registered_models", [])]


@dataclass(frozen=True)
class Published:
    """A model that went the whole way. folder: its export."""

    trained: TrainedModel
    folder: Path
    record: ModelRecord


@pytest.fixture(scope="module")
def published(mlflow_server: Mlflow, tmp_path_factory: pytest.TempPathFactory) -> Published:
    model, folder = trained(), tmp_path_factory.mktemp("export")
    publisher = Publisher(mlflow_server.uri, mlflow_server.new_run())
    record = published_model(model, ExportSpec(register_as="proven"), folder, publisher)
    return Published(model, folder, record)


def test_proven_model_is_logged_registered_and_certified(published: Published) -> None:
    record = published.record

    assert record.certificate["passed"]
    assert record.registered == "proven/1"
    assert {check["runtime"] for check in record.certificate["checks"]} == {
        "eager",
        "torch.export",
        "onnxruntime",
        "mlflow.pyfunc",
    }
    assert set(record.certificate["files"]) == {"weights.safetensors", "model.json", "model.pt2", "model.onnx"}


@contextmanager
def served(model_uri: str, tracking_uri: str, log: Path) -> Iterator[str]:
    """`mlflow models serve` as a process of its own; its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["-m", "mlflow", "models", "serve", "-m", model_uri, "--env-manager", "local"]
    # mlflow starts uvicorn by its name, which an environment that is not activated does not have on its path.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"MLFLOW_TRACKING_URI": tracking_uri, "PATH": path}
    with log.open("wb") as out:
        server = subprocess.Popen(
            [sys.executable, *command, "-h", "127.0.0.1", "-p", str(port)],
            stdout=out,
            stderr=out,
            env=environment,
            start_new_session=True,
        )
    try:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 120
        while not _answers(url):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield url
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ping", timeout=10).is_success
    except httpx.HTTPError:
        return False


def test_served_model_answers_as_onnx_runtime_and_the_trained_network(
    published: Published, mlflow_server: Mlflow, tmp_path: Path
) -> None:
    import onnxruntime

    samples = published.trained.held_out[0].args[0][:5].numpy()
    session = onnxruntime.InferenceSession(str(published.folder / "model.onnx"), providers=["CPUExecutionProvider"])

    with served(published.record.uri, mlflow_server.uri, tmp_path / "log") as url:
        answer = httpx.post(f"{url}/invocations", json={"inputs": samples.tolist()}, timeout=60)
    from_onnx = session.run(None, {"input": samples})[0]

    with torch.no_grad():
        expected = published.trained.network(torch.from_numpy(samples)).numpy()
    assert answer.status_code == 200, answer.text
    np.testing.assert_allclose(np.asarray(answer.json()["predictions"]), expected, rtol=1e-5, atol=1e-6)  # fp32, folded
    np.testing.assert_allclose(from_onnx, expected, rtol=1e-5, atol=1e-6)


def test_corrupted_running_var_fails_the_certificate_and_nothing_is_published(
    mlflow_server: Mlflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, before = mlflow_server.new_run(), logged_models(mlflow_server)

    def corrupt(network: nn.Module) -> Any:
        damaged = copy.deepcopy(network)
        damaged[1].running_var[3] *= 4  # one channel of one layer, as a flipped exponent bit would
        return fold(damaged)

    monkeypatch.setattr(norm, "fold", corrupt)

    with pytest.raises(ExportMismatchError, match=r"must answer as the trained one: \w.* differs by .* relative"):
        published_model(trained(), ExportSpec(register_as="damaged"), tmp_path, Publisher(mlflow_server.uri, run))

    assert not json.loads((tmp_path / "certificate.json").read_text())["passed"]
    assert logged_models(mlflow_server) == before
    assert "damaged" not in registered_models(mlflow_server)


def test_model_that_mlflow_cannot_load_does_not_stay_there(
    mlflow_server: Mlflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, before = mlflow_server.new_run(), logged_models(mlflow_server)

    def fail(*_: object) -> None:
        assert len(logged_models(mlflow_server)) == len(before) + 1
        raise OSError("the file is damaged")

    monkeypatch.setattr(Publisher, "load_model", fail)

    with pytest.raises(OSError, match="damaged"):
        published_model(trained(), ExportSpec(), tmp_path, Publisher(mlflow_server.uri, run))

    assert logged_models(mlflow_server) == before


def test_model_of_an_earlier_start_stays_where_it_cannot_be_loaded_now(
    mlflow_server: Mlflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow may be away for a moment, and the model is certified and perhaps registered."""
    publisher = Publisher(mlflow_server.uri, mlflow_server.new_run())
    published_model(trained(), ExportSpec(), tmp_path, publisher)
    before = logged_models(mlflow_server)

    def fail(*_: object) -> None:
        raise OSError("MLflow is away")

    monkeypatch.setattr(Publisher, "load_model", fail)

    with pytest.raises(OSError, match="away"):
        published_model(trained(), ExportSpec(), tmp_path, publisher)

    assert logged_models(mlflow_server) == before


def test_model_whose_outputs_are_not_finite_is_not_published(mlflow_server: Mlflow, tmp_path: Path) -> None:
    broken = trained()
    with torch.no_grad():
        broken.network[5].weight[0, 0] = float("nan")

    with pytest.raises(ExportMismatchError, match="not finite"):
        published_model(broken, ExportSpec(), tmp_path, Publisher(mlflow_server.uri, mlflow_server.new_run()))
