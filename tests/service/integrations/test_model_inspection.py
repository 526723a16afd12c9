"""A process that knows torch is asked about a spec."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import pytest

from syncnorm.service.cli.code_folder import pack
from syncnorm.service.integrations import model_inspection
from syncnorm.service.integrations.model_inspection import PRELOADED, inspect
from syncnorm.service.storage.code_packages import CodePackages
from syncnorm.trainer.contract.plan import Inspection
from syncnorm.trainer.contract.spec_reader import read_spec
from syncnorm.trainer.forkserver import parent_process
from syncnorm.trainer.forkserver.fork_server import ForkServer
from tests.helpers import own_names
from tests.helpers.paths import ROOT
from tests.helpers.shared_memory import left_in_shared_memory


def test_code_named_as_ours_is_inspected_in_a_checkout_whatever_it_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    (tmp_path / "own").mkdir()
    archive, packages = own_names.archive(tmp_path / "own"), CodePackages(str(tmp_path / "storage"))
    package = f"sha256:{hashlib.sha256(archive).hexdigest()}"
    packages.put(package, io.BytesIO(archive))

    found = inspect(read_spec(own_names.spec(package, workers=2)), packages)

    assert found is not None
    assert found.conversion == [{"path": "layers.1", "from": "BatchNorm2d", "to": "SyncBatchNorm"}]
    assert [finding for finding in found.findings if finding.severity == "error"] == []


NESTED = """
import os
from pathlib import Path
from torch import nn

def make(num_classes: int = 10) -> nn.Module:
    width = int((Path(__file__).parent / "width.txt").read_text()) + int(os.environ["EXTRA"])
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.BatchNorm1d(width), nn.Linear(width, num_classes))
"""


def test_code_in_plain_folders_finds_its_files_and_its_environment(tmp_path: Path) -> None:
    folder = tmp_path / "own" / "nets" / "small"
    folder.mkdir(parents=True)
    (folder / "net.py").write_text(NESTED)
    (folder / "width.txt").write_text("16")
    document = own_names.spec(_put(tmp_path), workers=2)
    document |= {"model": {"class_path": "nets.small.net.make"}, "env": {"EXTRA": "4"}}

    found = inspect(read_spec(document), CodePackages(str(tmp_path / "storage")))

    assert found is not None
    assert [finding.message for finding in found.findings if finding.severity == "error"] == []
    assert found.conversion == [{"path": "2", "from": "BatchNorm1d", "to": "SyncBatchNorm"}]


def test_code_that_needs_a_secret_is_no_error_of_a_plan(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "net.py").write_text("import os\nTOKEN = os.environ['HUB_TOKEN']\n")
    document = own_names.spec(_put(tmp_path), workers=2)
    document |= {"model": {"class_path": "net.make"}, "env": {"HUB_TOKEN": {"secret": "HUB"}}}

    found = inspect(read_spec(document), CodePackages(str(tmp_path / "storage")))

    assert found is not None
    (finding,) = (finding for finding in found.findings if finding.code == "cannot_build")
    assert finding.severity == "warning"
    assert "HUB_TOKEN" in finding.fix


def _put(folder: Path) -> str:
    archive = pack(folder / "own")
    package = f"sha256:{hashlib.sha256(archive).hexdigest()}"
    CodePackages(str(folder / "storage")).put(package, io.BytesIO(archive))
    return package


# By a warm process


SPOILING = """
import os, signal, sys, threading, time
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Linear(16, 10))
        torch.use_deterministic_algorithms(True)
        torch.set_grad_enabled(False)
        torch.nn.BatchNorm1d = None
        torch.manual_seed(3)
        torch.set_num_threads(1)
        os.environ["SPOILED"] = "1"
        sys.path[:] = []
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        threading.Thread(target=time.sleep, args=(600,), daemon=True).start()

    def forward(self, x):
        return self.layers(x)
"""
ENDING = """
import os, signal
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        os.kill(os.getpid(), signal.SIGKILL)
"""
BUILT_IN: dict[str, Any] = {
    "name": "built-in",
    "model": {"name": "mlp"},
    "data": {"name": "digits", "batch_size": 32},
    "resources": {"workers": 2},
}


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Imports take minutes where other tests leave little of the processor."""
    monkeypatch.setattr(model_inspection, "TIMEOUT_S", 600.0)
    monkeypatch.setattr(parent_process, "START_S", 600.0)
    monkeypatch.setattr(parent_process, "ANSWER_S", 120.0)


@pytest.fixture(scope="module")
def forks() -> Iterator[ForkServer]:
    with contextlib.closing(ForkServer(PRELOADED)) as server:
        yield server


def inspected(spec: dict[str, Any], packages: CodePackages, forks: ForkServer | None) -> Inspection | None:
    """`inspect` in one environment, for which all tests share a parent. In a checkout, as `serve` is started there."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTEST_CURRENT_TEST", "PYTHONPATH")}
    with contextlib.chdir(ROOT), mock.patch.dict(os.environ, kept, clear=True):
        return inspect(read_spec(spec), packages, forks=forks)


def own_code(folder: Path, text: str) -> tuple[dict[str, Any], CodePackages]:
    """A spec with a class of a user's package, and where that is."""
    (folder / "own").mkdir()
    (folder / "own" / "mine.py").write_text(text)
    archive, packages = pack(folder / "own"), CodePackages(str(folder / "storage"))
    package = f"sha256:{hashlib.sha256(archive).hexdigest()}"
    packages.put(package, io.BytesIO(archive))
    return {**BUILT_IN, "model": {"class_path": "mine.Net"}, "code": {"package": package}}, packages


def parent_of(forks: ForkServer) -> psutil.Process:
    assert forks._parent is not None
    return psutil.Process(forks._parent.pid)


@pytest.mark.timeout(900)
def test_warm_process_answers_as_one_that_starts_anew_in_a_fraction_of_the_time(
    forks: ForkServer, tmp_path: Path
) -> None:
    packages = CodePackages(str(tmp_path))
    took: dict[str, list[float]] = {"warm": [], "cold": []}

    def plan(server: ForkServer | None) -> Inspection | None:
        began = time.perf_counter()
        found = inspected(BUILT_IN, packages, server)
        took["cold" if server is None else "warm"].append(time.perf_counter() - began)
        return found

    assert plan(forks) == plan(None) is not None
    assert plan(forks) == plan(forks)

    assert min(took["warm"]) < took["cold"][0] / 2
    assert parent_of(forks).num_threads() == 1
    assert parent_of(forks).children() == []


def test_code_named_as_ours_is_inspected_by_a_warm_process(forks: ForkServer, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    archive, packages = own_names.archive(tmp_path / "own"), CodePackages(str(tmp_path / "storage"))
    package = f"sha256:{hashlib.sha256(archive).hexdigest()}"
    packages.put(package, io.BytesIO(archive))

    found = inspected(own_names.spec(package, workers=2), packages, forks)

    assert found is not None
    assert found.conversion == [{"path": "layers.1", "from": "BatchNorm2d", "to": "SyncBatchNorm"}]


def test_code_that_spoils_its_process_changes_no_later_plan(forks: ForkServer, tmp_path: Path) -> None:
    spoiling, packages = own_code(tmp_path, SPOILING)
    before = inspected(BUILT_IN, packages, forks)

    spoilt = inspected(spoiling, packages, forks)

    assert spoilt is not None
    assert spoilt.conversion == [{"path": "layers.2", "from": "BatchNorm1d", "to": "SyncBatchNorm"}]
    assert inspected(BUILT_IN, packages, forks) == before
    assert parent_of(forks).num_threads() == 1


@pytest.mark.chaos
@pytest.mark.parametrize("harm", [signal.SIGKILL, signal.SIGSTOP])
def test_parent_that_dies_or_hangs_costs_a_cold_start_and_no_plan(
    forks: ForkServer, tmp_path: Path, harm: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parent_process, "ANSWER_S", 1.0)
    packages = CodePackages(str(tmp_path))
    before = inspected(BUILT_IN, packages, forks)

    parent_of(forks).send_signal(harm)

    assert inspected(BUILT_IN, packages, forks) == before


def test_code_that_ends_its_process_is_told_by_a_cold_one(
    forks: ForkServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ending, packages = own_code(tmp_path, ENDING)

    with caplog.at_level(logging.WARNING):
        found = inspected(ending, packages, forks)

    assert found is None
    assert [record.message.split(";")[0] for record in caplog.records] == [
        "no warm process for a plan",
        "could not build the model of a spec for its plan",
    ]


@pytest.mark.parametrize("count", [3, pytest.param(200, marks=pytest.mark.chaos)])
def test_plans_in_a_row_leave_nothing(forks: ForkServer, tmp_path: Path, count: int) -> None:
    spoiling, packages = own_code(tmp_path, SPOILING)

    def plan() -> Inspection | None:
        return inspected(spoiling, packages, forks)

    first = plan()
    shared, here = left_in_shared_memory(), psutil.Process().num_fds()

    found = [plan() for _ in range(count)]

    assert all(one == first for one in found)
    assert left_in_shared_memory() <= shared
    assert psutil.Process().num_fds() == here
    assert parent_of(forks).children(recursive=True) == []
