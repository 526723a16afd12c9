"""The commands of examples/own-module, as its README has them."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from syncnorm.service.client.client import Client
from tests.helpers.paths import EXAMPLES, ROOT

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400)]

FOLDER = EXAMPLES / "own-module"


def shell(command: str, **environment: str) -> str:
    """What a command of the README prints; programs are those of this Python."""
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = command.replace("syncnorm ", f"{shlex.quote(sys.executable)} -m syncnorm.service.cli.main ")
    done = subprocess.run(
        command,
        shell=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        env={**os.environ, "PATH": programs, "SYNCNORM_TOKEN": "", **environment},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_commands_of_the_readme_upload_train_and_fetch(client: Client, tmp_path: Path) -> None:
    upload, submit, fetch = (
        (FOLDER / "README.md").read_text().partition("```\n")[2].partition("```")[0].strip().splitlines()
    )

    shell(f"{upload}\n{submit}", SYNCNORM_URL=client.url)
    run = json.loads(shell("syncnorm show last --json", SYNCNORM_URL=client.url))
    uri = run["mlflow"]["url"].partition("/#/")[0]
    target = str(tmp_path / "fetched")
    shell(fetch.replace("RUN", run["mlflow"]["run_id"]).replace("fetched", target), MLFLOW_TRACKING_URI=uri)

    assert (run["state"], run["export"]["state"]) == ("succeeded", "certified")
    assert run["progress"]["metrics"]["val_acc"] > 0.7
    spec = importlib.util.spec_from_file_location("digit_net", FOLDER / "digit_net.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    net = module.Net()
    net.load_state_dict(load_file(tmp_path / "fetched" / "export" / "weights.safetensors"))
    data = module.Digits()
    data.setup("fit")
    x, y = (torch.stack(list(column)) for column in zip(*data.val, strict=True))
    with torch.no_grad():
        right = (net.eval()(x).argmax(1) == y).double().mean()
    assert float(right) > 0.7
