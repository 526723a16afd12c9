"""Uploaded code trains on real workers with a secret in its environment, which appears nowhere afterwards."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from service.client import Client
from service.upload import pack
from tests.stack.conftest import Serving, finished

pytestmark = [pytest.mark.stack, pytest.mark.chaos, pytest.mark.timeout(300)]

SOURCE = """
import logging, os
from torch import nn

def make(num_classes: int = 10) -> nn.Module:
    logging.getLogger(__name__).warning("logging in with %s", os.environ["HUB_TOKEN"])
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, num_classes))
"""


def test_own_model_trains_with_a_secret_that_appears_nowhere(client: Client, serving: Serving, tmp_path: Path) -> None:
    (tmp_path / "own_net").mkdir()
    (tmp_path / "own_net" / "__init__.py").write_text(SOURCE)
    canary = f"canary-{secrets.token_hex(12)}"
    client.put_secret("HUB", canary)
    package = client.put_package(pack(tmp_path))["package"]

    job = client.submit(
        {
            "name": "own-code",
            "model": {"class_path": "own_net.make"},
            "data": {"name": "digits", "batch_size": 64},
            "train": {"epochs": 1},
            "resources": {"workers": 1},
            "export": {"formats": []},
            "code": {"package": package},
            "env": {"HUB_TOKEN": {"secret": "HUB"}},
        }
    )
    done = finished(client, job["id"])

    lines = [line["text"] for line in client.logs(job["id"], limit=1000)]
    assert done["state"] == "succeeded", (done["message"], lines)
    assert any("logging in with ***" in line for line in lines)
    assert not any(canary in line for line in lines)
    written = [path for path in serving.home.rglob("*") if path.is_file() and canary.encode() in path.read_bytes()]
    assert written == []
