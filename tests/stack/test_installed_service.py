"""The service out of its wheel, in an environment without the checkout: a job from submit to certificate."""

from __future__ import annotations

import site
from pathlib import Path

import pytest

from syncnorm.service.cli.code_folder import pack
from tests.helpers.distributions import build, environment, run
from tests.stack.conftest import Serving, eventually, finished

pytestmark = [pytest.mark.stack, pytest.mark.chaos, pytest.mark.timeout(600)]

MODEL = """
import sys
from syncnorm import norm
from torch import nn

def make(num_classes: int = 10) -> nn.Module:
    ours = {module.__file__ for name, module in sys.modules.items() if name.split(".")[0] == "syncnorm"}
    print("found in", *{file.partition("/syncnorm/")[0] for file in ours})
    return nn.Sequential(nn.Conv2d(1, 4, 3), norm.build("batch", 4), nn.Flatten(), nn.Linear(144, num_classes))
"""


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """An environment with the wheel, and with the libraries, but not the packages, of the one that runs the tests."""
    _, wheel = build(tmp_path)
    found = environment(tmp_path / "venv")
    run(str(found), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel), cwd=tmp_path)
    (_packages(found) / "libraries.pth").write_text("\n".join(site.getsitepackages()))
    return found


def _packages(python: Path) -> Path:
    return next(python.parents[1].glob("lib/python*/site-packages"))


def test_installed_service_trains_and_exports_a_job_without_the_checkout(python: Path, tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "own.py").write_text(MODEL)
    (tmp_path / "home").mkdir()
    serving = Serving(tmp_path / "home", "syncnorm", python=python, PYTHONPATH="")
    try:
        with eventually(serving.ready, 180) as client:
            package = client.put_package(pack(tmp_path / "code"))["package"]
            document = {
                "name": "installed",
                "model": {"class_path": "own.make"},
                "data": {"name": "digits", "batch_size": 64},
                "train": {"epochs": 1},
                "resources": {"workers": 2},
                "code": {"package": package},
            }
            plan = client.plan(document)
            job = finished(client, client.submit(document)["id"])
            lines = [line["text"] for line in client.logs(job["id"], limit=1000)]
    finally:
        serving.interrupt()

    assert plan["conversion"]
    assert job["state"] == "succeeded", (job["message"], lines)
    assert job["model"]["certificate"]["passed"] is True
    assert {line for line in lines if line.startswith("found in")} == {f"found in {_packages(python)}"}
