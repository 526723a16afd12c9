"""A network that torch.export can't take trains on real workers; its weights are published, and a part is certified."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from safetensors.torch import load

from syncnorm.service.cli.code_folder import pack
from syncnorm.service.client.client import Client
from tests.stack.conftest import eventually, finished

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400)]

SOURCE = """
from torch import nn

class Branches(nn.Module):
    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, num_classes)
        )

    def forward(self, x):
        h = self.net(x)
        if h.mean() > 0:
            h = h * 2
        return h
"""


@pytest.fixture(scope="module")
def package(client: Client, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("code")
    (folder / "branching_net.py").write_text(SOURCE)
    return str(client.put_package(pack(folder))["package"])


def document(package: str, **export: Any) -> dict[str, Any]:
    return {
        "name": "branches",
        "model": {"class_path": "branching_net.Branches"},
        "data": {"name": "digits", "batch_size": 64},
        "train": {"epochs": 2, "keep_best": {"monitor": "val/loss"}},
        "resources": {"workers": 2},
        "code": {"package": package},
        "export": export,
    }


def weights(job: dict[str, Any], path: str) -> dict[str, Any]:
    uri = str(job["mlflow"]["url"]).split("/#/")[0]
    params = {"path": f"{path}/weights.safetensors", "run_uuid": job["mlflow"]["run_id"]}
    return load(httpx.get(f"{uri}/get-artifact", params=params, timeout=30).raise_for_status().content)


def test_job_succeeds_with_its_weights_and_a_part_is_certified_later(client: Client, package: str) -> None:
    done = finished(client, client.submit(document(package))["id"])

    assert (done["state"], done["model"]) == ("succeeded", None), done["message"]
    assert (done["export"]["state"], done["export"]["reason"]) == ("failed", "not_exportable")
    assert "branching_net.py, line 13: if h.mean() > 0:" in done["export"]["message"]
    assert "net.1.weight" in weights(done, "export")
    assert "if h.mean() > 0" in client.explain(done["id"])["message"]

    made = client.export(done["id"], formats=["onnx"], module="net", checkpoint="best")
    eventually(lambda: client.one_export(done["id"], made["name"])["state"] in ("succeeded", "failed"), 120)
    after = client.job(done["id"])

    assert (after["export"]["state"], after["export"]["name"]) == ("certified", "2"), after["export"]
    assert after["model"]["certificate"]["module"] == "net"
    assert after["model"]["certificate"]["checkpoint"]["which"] == "best"
    assert "net.1.weight" in weights(done, "exports/2")


@pytest.mark.chaos
def test_required_export_fails_the_job(client: Client, package: str) -> None:
    done = finished(client, client.submit(document(package, required=True))["id"])

    assert (done["state"], done["reason"], done["export"]["state"]) == ("failed", "export_mismatch", "failed")
    assert "if h.mean() > 0" in done["message"]
    assert "leave out export.required" in done["message"]
    assert "net.1.weight" in weights(done, "export")
