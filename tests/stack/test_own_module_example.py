"""The commands of examples/own-module, as its README has them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from syncnorm.service.client.client import Client
from tests.helpers.paths import EXAMPLES
from tests.helpers.stack.shell import commands_of, shell

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400)]

FOLDER = EXAMPLES / "own-module"


def test_commands_of_the_readme_upload_train_and_fetch(client: Client, tmp_path: Path) -> None:
    submit, fetch = commands_of(FOLDER / "README.md")

    shell(submit, SYNCNORM_URL=client.url)
    run = json.loads(shell("syncnorm show last --json", SYNCNORM_URL=client.url))
    shell(fetch.replace("fetched", str(tmp_path / "fetched")), SYNCNORM_URL=client.url)

    assert (run["state"], run["export"]["state"]) == ("succeeded", "certified")
    assert run["progress"]["metrics"]["val_acc"] > 0.7
    spec = importlib.util.spec_from_file_location("digit_net", FOLDER / "digit_net.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    net = module.Net()
    net.load_state_dict(load_file(tmp_path / "fetched" / "weights.safetensors"))
    data = module.Digits()
    data.setup("fit")
    x, y = (torch.stack(list(column)) for column in zip(*data.val, strict=True))
    with torch.no_grad():
        right = (net.eval()(x).argmax(1) == y).double().mean()
    assert float(right) > 0.7
