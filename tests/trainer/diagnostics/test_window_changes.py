"""What windows change for a trained network: nothing with statistics of batches, something with those of samples."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from torch import Tensor, nn

from syncnorm import norm
from syncnorm.trainer.contract.spec import DataSpec
from syncnorm.trainer.contract.spec_reader import read_spec
from syncnorm.trainer.data import Data, build_data
from syncnorm.trainer.data.loader import Batch
from syncnorm.trainer.diagnostics import window_references
from syncnorm.trainer.diagnostics.window_changes import WindowChanges, measure, record
from syncnorm.trainer.driver import single_process
from syncnorm.trainer.ranks import free_memory
from syncnorm.trainer.storage.attempt_layout import AttemptFolders
from syncnorm.trainer.training.tasks.task import Inferer, Task
from tests.helpers.trainer.own_tasks import PerPosition, SlidingWindow
from tests.helpers.trainer.ranks import launch_of
from tests.trainer.conftest import Mlflow

CPU = torch.device("cpu")
HALO = 2
"""Positions that an output of `toy` sees on each side."""
BY_SAMPLE = [name for name, kind in norm.KINDS.items() if kind.sample_statistics]
NOT_BY_SAMPLE = ["none", "weight", *(name for name, kind in norm.KINDS.items() if kind.running_statistics)]


@pytest.fixture(scope="module")
def scenes() -> Data:
    spec = DataSpec(name="digit_scenes", batch_size=8, init_args={"size": 32, "scenes": 64, "val_scenes": 6})
    return build_data(spec, seed=0)


def toy(data: Data, kind: str) -> nn.Module:
    """A network of two convolutions and one per position, trained for some steps to tell digits from the ground."""
    torch.manual_seed(0)
    blocks = [[nn.Conv2d(c, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()] for c in (1, 8)]
    network = nn.Sequential(*blocks[0], *blocks[1], nn.Conv2d(8, 2, 1))
    network, _ = norm.convert(network, kind)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    weights = torch.tensor([0.2, 1.0])  # most of a scene is ground
    for step in range(40):
        samples = [data.train[(8 * step + i) % 64] for i in range(8)]
        x, y = (torch.stack(each) for each in zip(*samples, strict=True))
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y.clamp(max=1), weights).backward()
        optimizer.step()
    return network.eval()


def batches(data: Data, sizes: tuple[int, ...] = (3, 3)) -> Iterator[Batch]:
    start = 0
    for size in sizes:
        x, y = (torch.stack(each) for each in zip(*(data.val[start + i] for i in range(size)), strict=True))
        yield Batch((x, y), 1.0)
        start += size


def measured(data: Data, network: nn.Module, inferer: Inferer) -> WindowChanges | str:
    return measure(network, Task(data.info, inferer=inferer), batches(data), CPU)


@pytest.mark.parametrize("kind", BY_SAMPLE)
def test_kinds_with_statistics_of_samples_answer_otherwise_by_windows(kind: str, scenes: Data) -> None:
    found = measured(scenes, toy(scenes, kind), SlidingWindow(16, HALO))

    assert isinstance(found, WindowChanges)
    assert (found.samples, found.positions, found.windows, found.reference) == (4, 4 * 32 * 32, 4 * 2, "whole")
    assert found.share > 0


@pytest.mark.parametrize("kind", NOT_BY_SAMPLE)
def test_other_kinds_answer_the_same_where_windows_see_all_that_counts(kind: str, scenes: Data) -> None:
    found = measured(scenes, toy(scenes, kind), SlidingWindow(16, HALO))

    assert isinstance(found, WindowChanges)
    assert (found.share, found.object_share) == (0.0, 0.0)


def test_borders_of_windows_count_too(scenes: Data) -> None:
    found = measured(scenes, toy(scenes, "batch"), SlidingWindow(16, 0))

    assert isinstance(found, WindowChanges)
    assert found.share > 0


def test_the_share_is_that_of_a_plain_comparison(scenes: Data) -> None:
    network, inferer = toy(scenes, "group"), SlidingWindow(16, HALO)
    x, y = (torch.stack(each) for each in zip(*(scenes.val[i] for i in range(4)), strict=True))
    with torch.no_grad():
        whole = network(x).argmax(1)
        parts = torch.cat([inferer(each[None], network) for each in x]).argmax(1)

    found = measured(scenes, network, inferer)

    assert isinstance(found, WindowChanges)
    assert found.share == pytest.approx(float((whole != parts).double().mean()), abs=1e-12)
    assert found.object_share == pytest.approx(float((whole != parts)[y > 0].double().mean()), abs=1e-12)


class OneSize(nn.Module):
    """Takes pictures of up to so many columns."""

    def __init__(self, network: nn.Module, most: int) -> None:
        super().__init__()
        self.network, self.most = network, most

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] > self.most:
            raise ValueError(f"{x.shape[-1]} columns are too many")
        return self.network(x)  # type: ignore[no-any-return]


def test_smaller_windows_stand_in_for_whole_samples_that_the_network_refuses(scenes: Data) -> None:
    found = measured(scenes, OneSize(toy(scenes, "group"), 16 + 2 * HALO), SlidingWindow(16, HALO))

    assert isinstance(found, WindowChanges)
    assert (found.reference, found.windows) == ([8, 8], 4 * 2)
    assert found.share > 0


def test_smaller_windows_stand_in_for_whole_samples_without_memory(
    scenes: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(window_references, "free_bytes", lambda _: 1000)

    found = measured(scenes, toy(scenes, "group"), SlidingWindow(16, HALO))

    assert isinstance(found, WindowChanges)
    assert found.reference == [8, 8]


def test_sides_are_cut_to_what_the_network_takes(scenes: Data) -> None:
    class Halving(nn.Module):
        """Wants pictures of multiples of 8, as a U-Net does."""

        def forward(self, x: Tensor) -> Tensor:
            if x.shape[-1] > 4 and any(side % 8 for side in x.shape[2:]):
                raise RuntimeError("Sizes of tensors must match")
            return torch.cat([x, 1 - x], 1)

    x, y = scenes.val[0]
    odd = [Batch((x[None, :, :31, :30], y[None, :31, :30]), 1.0)]

    found = measure(Halving(), Task(scenes.info, inferer=SlidingWindow(4, 0)), odd, CPU)

    assert isinstance(found, WindowChanges)
    assert (found.positions, found.share, found.reference) == (24 * 24, 0.0, "whole")


def test_what_can_not_be_compared_is_said(scenes: Data) -> None:
    network = PerPosition(scenes.info.num_classes, 1)

    def broken(*_: object) -> Tensor:
        raise RuntimeError("out of windows")

    def fixed(x: Tensor, network: nn.Module) -> Tensor:
        return torch.cat([network(part) for part in x.split(16, dim=-1)], dim=-1)

    assert measured(scenes, network, broken) == "RuntimeError: out of windows"
    assert measured(scenes, OneSize(network, 16), fixed) == (
        "a whole sample fits neither memory nor network, and the size of the windows can't be changed"
    )
    assert measure(network, Task(scenes.info, inferer=SlidingWindow(16, 0)), [], CPU) == (
        "the first worker has no validation samples"
    )


def test_what_was_found_is_in_the_run(tmp_path: Path) -> None:
    folders = AttemptFolders(tmp_path)
    found = WindowChanges(0.25, 0.5, samples=2, positions=8, windows=4, reference="whole")

    facts = record(found, folders, step=7)

    assert facts["share"] == 0.25
    assert json.loads((folders.artifacts / "norm" / "windows.json").read_text())["object_share"] == 0.5
    point = json.loads(folders.spool.read_text())
    assert (point["key"], point["value"], point["step"]) == ("norm/window_changes", 0.25, 7)


def test_why_nothing_was_found_is_in_the_run(tmp_path: Path) -> None:
    folders = AttemptFolders(tmp_path)

    facts = record("no samples", folders, step=7)

    assert facts == {"not_measured": "no samples"}
    assert json.loads((folders.artifacts / "norm" / "windows.json").read_text()) == facts
    assert not folders.spool.exists()


def test_memory_of_a_container_bounds_that_of_its_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 64 kB\nMemAvailable:       40 kB\n")
    monkeypatch.setattr(free_memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(free_memory, "CGROUP", tmp_path)

    assert free_memory.free_bytes(CPU) == 40 * 1024

    (tmp_path / "memory.current").write_text("1000\n")
    for most, free in (("max", 40 * 1024), ("31000", 30000)):
        (tmp_path / "memory.max").write_text(f"{most}\n")
        assert free_memory.free_bytes(CPU) == free


@pytest.mark.filterwarnings("ignore")  # exporters and MLflow warn about their own internals
def test_a_job_that_validates_by_windows_says_what_they_change(mlflow_server: Mlflow, tmp_path: Path) -> None:
    windows = {"class_path": "tests.helpers.trainer.own_tasks.SlidingWindow", "init_args": {"roi_size": 16, "halo": 0}}
    document = {
        "name": "windows",
        "model": {"name": "unet", "init_args": {"width": 4, "depth": 2}, "inferer": windows},
        "data": {"name": "digit_scenes", "batch_size": 8, "init_args": {"size": 32, "scenes": 16, "val_scenes": 6}},
        "norm": {"kind": "group"},
        "train": {"epochs": 1},
        "export": {"formats": ["pt2"]},
    }
    where = {"mlflow_uri": mlflow_server.uri, "mlflow_run_id": mlflow_server.new_run(), "spec": read_spec(document)}
    (tmp_path / "launch.json").write_text(launch_of(document).model_copy(update=where).model_dump_json())

    result = single_process.train({"folder": str(tmp_path), "resume_from": None, "patience_s": 0.0})

    def get(endpoint: str, **params: str) -> Any:
        run = where["mlflow_run_id"]
        return httpx.get(f"{mlflow_server.uri}{endpoint}", params={"run_id": run, "run_uuid": run, **params}).json()

    found = get("/get-artifact", path="norm/windows.json")
    metrics = get("/api/2.0/mlflow/runs/get")["run"]["data"]["metrics"]
    planned = get("/get-artifact", path="plan.json")["findings"]
    assert (found["samples"], found["positions"], found["reference"]) == (4, 4 * 32 * 32, "whole")
    assert result["model"]["certificate"]["windows"] == found
    assert [each["value"] for each in metrics if each["key"] == "norm/window_changes"] == [found["share"]]
    assert "statistics_of_windows" in [each["code"] for each in planned]
