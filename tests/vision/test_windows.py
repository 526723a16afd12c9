"""What MONAI's inferers and the windows of data nifti change, for networks of MONAI."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from syncnorm import norm
from syncnorm.trainer.contract.spatial_maps import uses_windows
from syncnorm.trainer.contract.spec_reader import read_spec
from syncnorm.trainer.data.info import DataInfo, Windows
from syncnorm.trainer.data.loader import Batch
from syncnorm.trainer.diagnostics.window_changes import WindowChanges, measure
from syncnorm.trainer.training.tasks.named_parts import named_task
from syncnorm.trainer.training.tasks.task import Task

VOLUMES = DataInfo(task="segmentation", num_classes=3, shape=(1, 16, 16, 16), windows=Windows(0.5, "gaussian", 4))
PICTURES = DataInfo(task="segmentation", num_classes=3, shape=(1, 32, 32))


def batches(info: DataInfo, *sides: int) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(0)
    for size in range(2):
        x = torch.randn(1 + size, *info.shape[:1], *sides, generator=generator)
        yield Batch((x + x.roll(1, -1), torch.randint(info.num_classes, x[:, 0].shape, generator=generator)), 1.0)


def network(dims: int, kind: str) -> torch.nn.Module:
    from monai.networks.nets import UNet

    torch.manual_seed(0)
    plain = UNet(spatial_dims=dims, in_channels=1, out_channels=3, channels=(8, 16, 16), strides=(2, 2), norm="batch")
    return norm.convert(plain, kind)[0].eval()


def task(info: DataInfo, name: str | None, **init_args: Any) -> Task:
    """As a job makes it. name: of MONAI's inferer; None: the windows that data nifti brings."""
    model: dict[str, Any] = {"name": "unet"}
    if name is not None:
        model["inferer"] = {"class_path": f"monai.inferers.{name}", "init_args": init_args}
    data = (
        {"name": "nifti", "init_args": {"root": "/volumes", "num_classes": 3}} if info.windows else {"name": "digits"}
    )
    spec = read_spec({"name": "x", "model": model, "data": data | {"batch_size": 2}})
    assert uses_windows(spec) == ("data" if name is None else "model.inferer")
    return named_task(spec.model, info)


INFERERS: dict[str, tuple[DataInfo, tuple[int, ...], str | None, dict[str, Any]]] = {
    "windows of nifti": (VOLUMES, (24, 20, 29), None, {}),
    "windows of MONAI": (VOLUMES, (24, 20, 29), "SlidingWindowInferer", {"roi_size": [16, 16, 16], "overlap": 0.5}),
    "of one number": (PICTURES, (48, 64), "SlidingWindowInferer", {"roi_size": 32, "progress": False}),
    "that adapt": (PICTURES, (48, 64), "SlidingWindowInfererAdapt", {"roi_size": [32, 32]}),
}


@pytest.mark.parametrize("name", INFERERS)
def test_group_answers_otherwise_by_windows_than_on_the_whole(name: str) -> None:
    info, sides, inferer, init_args = INFERERS[name]

    found = measure(
        network(len(sides), "group"), task(info, inferer, **init_args), batches(info, *sides), torch.device("cpu")
    )

    assert isinstance(found, WindowChanges)
    assert (found.samples, found.reference) == (3, "whole")
    assert found.windows > 3
    assert found.share > 0


@pytest.mark.parametrize("name", INFERERS)
def test_smaller_windows_stand_in_where_memory_is_short(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    info, sides, inferer, init_args = INFERERS[name]
    monkeypatch.setattr("syncnorm.trainer.diagnostics.window_references.free_bytes", lambda _: 10_000)

    found = measure(
        network(len(sides), "group"), task(info, inferer, **init_args), batches(info, *sides), torch.device("cpu")
    )

    assert isinstance(found, WindowChanges)
    assert found.reference == [info.shape[1] // 2] * len(sides)
    assert found.share > 0


def test_slices_keep_their_size_so_nothing_is_compared() -> None:
    """MONAI sets it back at each call, and a network for slices takes no volumes."""
    slices = task(VOLUMES, "SliceInferer", roi_size=[16, 16], spatial_dim=2)

    found = measure(network(2, "group"), slices, batches(VOLUMES, 24, 20, 29), torch.device("cpu"))

    assert found == "a whole sample fits neither memory nor network, and the size of the windows can't be changed"
