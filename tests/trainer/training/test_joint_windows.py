"""Whole volumes by windows that show all the network looks at, and by joint ones: both give what the whole gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from syncnorm import norm
from syncnorm.trainer.contract.plan import plan
from syncnorm.trainer.contract.spec_reader import read_spec
from syncnorm.trainer.data import Data
from syncnorm.trainer.data.info import ReceptiveField, Windows
from syncnorm.trainer.training.tasks.joint_windows import JointWindows
from syncnorm.trainer.training.tasks.receptive_field import receptive_field, with_field
from syncnorm.trainer.training.tasks.sliding_window import SlidingWindow
from syncnorm.trainer.worker.module_and_data import Assembly, assemble_task
from tests.helpers.norm.unet import UNet
from tests.helpers.trainer.volume_data import volume_data

CPU = torch.device("cpu")
BY_SAMPLE = [name for name, kind in norm.KINDS.items() if kind.sample_statistics]


def network(kind: str, dims: int = 2) -> nn.Module:
    torch.manual_seed(0)
    model, _ = norm.convert(UNet(dims, c_in=1), kind)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            nn.init.uniform_(parameter, -1, 1)
    return model.eval().double()


def picture(*sides: int) -> Tensor:
    torch.manual_seed(1)
    x = torch.randn(2, 1, *sides, dtype=torch.float64)
    return x + torch.linspace(-2, 2, sides[-1], dtype=torch.float64)


def whole(model: nn.Module, x: Tensor, multiple: int = 4) -> Tensor:
    """With zeros up to a multiple of the stride."""
    pads = [pad for side in x.shape[:1:-1] for pad in (0, -side % multiple)]
    with torch.no_grad():
        y: Tensor = model(nn.functional.pad(x, pads))
    return y[(slice(None), slice(None), *map(slice, x.shape[2:]))]


@pytest.mark.parametrize("sides", [(96, 50), (32, 32), (70, 33), (20, 90)])
@pytest.mark.parametrize("blending", ["gaussian", "constant"])
def test_windows_that_show_all_give_what_the_whole_does(sides: tuple[int, ...], blending: Any) -> None:
    model, x, size = network("batch"), picture(*sides), (32, 32)
    field = receptive_field(model, (1, *size))
    windows = SlidingWindow(size, Windows("auto", blending, at_once=3, field=field))

    with torch.no_grad():
        found = windows(x, model)
        plain = SlidingWindow(size, Windows(0.5, blending, at_once=3))(x, model)

    padded = [max(32, side) for side in sides]  # a side below that of a window is padded to it, as always
    expected = whole(model, nn.functional.pad(x, [0, padded[1] - sides[1], 0, padded[0] - sides[0]]))
    expected = expected[..., : sides[0], : sides[1]]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)  # fp64
    if max(sides) > 32:
        assert float((plain - expected).abs().max()) > 1e-3


@pytest.mark.parametrize("kind", BY_SAMPLE)
def test_windows_that_show_all_still_take_their_own_statistics(kind: str) -> None:
    model, x = network(kind), picture(96, 50)
    windows = Windows("auto", "gaussian", at_once=3, field=receptive_field(model, (1, 32, 32)))

    with torch.no_grad():
        found = SlidingWindow((32, 32), windows)(x, model)

    assert float((found - whole(model, x)).abs().max()) > 1e-2


@pytest.mark.parametrize("by_tiles", [False, True])
@pytest.mark.parametrize("kind", [*BY_SAMPLE, "batch"])
def test_joint_windows_give_what_the_whole_does(kind: str, by_tiles: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = network(kind), picture(70, 50)
    windows = JointWindows((32, 16), receptive_field(model, (1, 32, 16)))
    if by_tiles:
        monkeypatch.setattr(JointWindows, "tile", lambda self, _: self.size)

    found = windows(x, model)

    torch.testing.assert_close(found, whole(model, x), rtol=0, atol=1e-10)  # fp64


def test_tiles_of_joint_windows_are_worth_it() -> None:
    windows = JointWindows((32, 32), ReceptiveField((8, 24), (4, 4)))

    assert windows.tile(torch.zeros(1, 1, 400, 400)) == (400, 400)
    assert windows.tile(torch.zeros(1, 1, 400, 400, device="meta")) == (32, 32)
    assert windows.tile(torch.zeros(1, 1, 400, 80, device="meta")) == (32, 80)  # one window and its halo see all of it
    assert windows.tile(torch.zeros(1, 1, 40, 40, device="meta")) == (40, 40)
    assert windows.tile(torch.zeros(1, 1, 1024, 1024, device="meta")) == (64, 64)  # of 32 there would be too many


def job(**changes: Any) -> dict[str, Any]:
    return {
        "name": "volumes",
        "model": {"name": "unet", "init_args": {"dims": 3, "width": 4, "depth": 1}},
        "data": {"name": "synthetic", "batch_size": 1},
        "norm": {"kind": "group"},
        "train": {"epochs": 1},
    } | changes


def assembled(data: Data, network: nn.Module | None = None, **changes: Any) -> Assembly:
    return assemble_task(read_spec(job(**changes)), data, 0, 1, network)


def test_the_job_measures_how_far_its_network_looks(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        made = assembled(volume_data(windows="joint"))

    assert made.task_data is not None
    windows = made.task_data.data.info.windows
    assert windows is not None
    assert windows.field == ReceptiveField((8, 8, 8), (2, 2, 2))
    assert isinstance(made.module.task.inferer, JointWindows)  # type: ignore[union-attr]
    assert "volumes are run jointly: the network looks [8, 8, 8] voxels far, total stride [2, 2, 2]" in caplog.text
    assert all(module.training for module in made.module.network.modules())  # type: ignore[union-attr]


def test_validation_runs_joint_windows() -> None:
    data = volume_data(windows="joint", patch=[4, 4, 4])
    made = assembled(data)
    model, task = made.module.network.eval(), made.module.task  # type: ignore[union-attr]
    x, _ = data.val[1]

    with torch.no_grad():
        found = task._infer(model, x[None])

    torch.testing.assert_close(found, whole(model, x[None], 2), rtol=0, atol=1e-5)  # fp32


class Excitation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv3d(1, 3, 3, padding=1), nn.AdaptiveAvgPool3d(1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y * self.pool(y)  # type: ignore[no-any-return]


@pytest.mark.parametrize("setting", [{"windows": "joint"}, {"overlap": "auto"}])
def test_a_network_that_sees_everything_is_refused_before_training(setting: dict[str, str]) -> None:
    name, value = next(iter(setting.items()))

    with pytest.raises(
        ValueError,
        match=rf"data.init_args.{name}: {value} must be left out for this network: .* run pool .AdaptiveAvgPool3d",
    ):
        assembled(volume_data(**setting), Excitation())


def test_a_patch_that_can_not_show_all_is_refused_with_one_that_can() -> None:
    with pytest.raises(ValueError, match=r"is \[8, 8, 8\] positions .* patch of \[8, 8, 8\]. Use .* \[18, 18, 18\]"):
        assembled(volume_data(overlap="auto"))

    made = assembled(volume_data(overlap="auto", patch=[24, 24, 24]))

    assert isinstance(made.module.task.inferer, SlidingWindow)  # type: ignore[union-attr]
    assert made.module.task.inferer.halo == (8, 8, 8)  # type: ignore[union-attr]


def test_what_joint_windows_can_not_be_combined_with_is_refused() -> None:
    with pytest.raises(ValueError, match=r"which a compiled one can't. Leave train.compile out"):
        assembled(volume_data(windows="joint"), train={"epochs": 1, "compile": True})
    inferer = {"class_path": "tests.helpers.trainer.own_tasks.Windows", "init_args": {"width": 4}}
    with pytest.raises(ValueError, match=r"data.init_args.windows must be separate where model.inferer runs volumes"):
        assembled(volume_data(windows="joint"), model=job()["model"] | {"inferer": inferer})


def test_nothing_is_measured_where_windows_need_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("syncnorm.trainer.training.tasks.receptive_field.receptive_field", lambda *_: pytest.fail())
    info = volume_data().info

    assert with_field(info, Excitation()) is info


def test_the_plan_says_what_joint_windows_mean_for_an_export() -> None:
    data = {"name": "nifti", "batch_size": 2, "init_args": {"root": "/scans", "num_classes": 2, "windows": "joint"}}

    found = {one.code: one for one in plan(read_spec(job(data=data)), None).findings}

    assert found["statistics_of_windows"].severity == "info"
    assert "An exported file takes them from the window" in found["statistics_of_windows"].message
