"""Uploaded code trains on real workers with a secret in its environment, which appears nowhere afterwards."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from syncnorm.service.cli.code_folder import pack
from syncnorm.service.client.client import Client
from tests.stack.conftest import Serving, finished

pytestmark = [pytest.mark.stack, pytest.mark.chaos, pytest.mark.timeout(300)]

SOURCE = """
import logging, os, subprocess, sys
from torch import nn

def make(num_classes: int = 10) -> nn.Module:
    secret = os.environ["HUB_TOKEN"]
    logging.getLogger(__name__).warning("logging in with %s", secret)
    try:
        raise ValueError(secret)
    except ValueError:
        logging.getLogger(__name__).exception("it failed")
    print("printing", secret)
    print("printing an error", secret, file=sys.stderr)
    print("past what Python was given", secret, file=sys.__stdout__, flush=True)
    early = logging.StreamHandler(sys.__stderr__)
    early.emit(logging.makeLogRecord({"msg": "a handler of its own " + secret}))
    os.write(1, b"past Python " + secret.encode() + b" without an end")
    subprocess.run(["sh", "-c", "echo a child $HUB_TOKEN; echo and its error $HUB_TOKEN >&2"])
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
    assert [line for line in lines if "printing" in line] == ["printing ***", "printing an error ***"]
    assert not any(canary in line for line in lines)
    places = [serving.home, _ray_folder(serving)]
    files = [path for place in places for path in place.rglob("*") if path.is_file()]
    assert any(b"past Python *** without an end" in path.read_bytes() for path in files if path.suffix == ".out")
    assert [path for path in files if canary.encode() in path.read_bytes()] == []


ODD = """
import logging, os
import lightning.pytorch as pl
from torch import nn

class Net(pl.LightningModule):
    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        logging.getLogger(__name__).warning("reading %s", os.fsdecode(b"caf\\xe9.png"))
        print(f"step {batch_idx} of \\x00")
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val/dice", float("nan"))
        self.log("val/gain", float("inf"))
"""


def test_odd_metrics_and_lines_of_own_code_are_values_and_lines(client: Client, tmp_path: Path) -> None:
    (tmp_path / "odd_net").mkdir()
    (tmp_path / "odd_net" / "__init__.py").write_text(ODD)
    package = client.put_package(pack(tmp_path))["package"]
    document = {
        "name": "odd",
        "model": {"class_path": "odd_net.Net"},
        "data": {"name": "digits", "batch_size": 64},
        "train": {"epochs": 2},
        "resources": {"workers": 2},
        "export": {"formats": []},
        "code": {"package": package},
        "env": {"A": "b"},
    }

    done = finished(client, client.submit(document)["id"])

    lines = [line["text"] for line in client.logs(done["id"], limit=1000)]
    assert (done["state"], done["attempts"]) == ("succeeded", 1), (done["message"], lines)
    assert done["progress"]["metrics"]["val/dice"] == "NaN"
    assert done["progress"]["metrics"]["val/gain"] == "Infinity"
    assert done["progress"]["epoch"] == 2
    assert "reading caf\N{REPLACEMENT CHARACTER}.png" in lines
    assert lines.count("step 0 of \N{REPLACEMENT CHARACTER}") == 4  # once for each rank and epoch


def _ray_folder(serving: Serving) -> Path:
    """Where the embedded Ray keeps what its processes print."""
    line = serving.processes("gcs_server")[0].cmdline()
    return Path(next(part for part in line if "session_" in part).split("=", 1)[1].partition("/session_")[0])
