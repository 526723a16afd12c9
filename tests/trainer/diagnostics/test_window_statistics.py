"""How much of what windows change comes from statistics: nothing with those of batches, some with those of samples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from syncnorm import norm
from syncnorm.trainer.data import Data
from syncnorm.trainer.data.loader import Batch
from syncnorm.trainer.diagnostics import window_references
from syncnorm.trainer.diagnostics.window_changes import WindowChanges, measure
from syncnorm.trainer.training.tasks.named_parts import volume_inferer
from syncnorm.trainer.training.tasks.receptive_field import with_field
from syncnorm.trainer.training.tasks.task import Task
from tests.helpers.norm.unet import UNet
from tests.helpers.trainer.volume_data import volume_data

CPU = torch.device("cpu")


def batches(data: Data) -> list[Batch]:
    return [Batch((x[None], y[None]), 1.0) for x, y in (data.val[index] for index in range(3))]


def changes(plain: nn.Module, kind: str, **settings: Any) -> WindowChanges:
    data = volume_data(patch=[8, 8, 8], **settings)
    network, _ = norm.convert(plain, kind)
    info = with_field(data.info, network.eval())
    found = measure(network, Task(info, inferer=volume_inferer(info)), batches(data), CPU)
    assert isinstance(found, WindowChanges)
    return found


def toy() -> nn.Module:
    """Looks 2 voxels far."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU(), nn.Conv3d(4, 3, 3, padding=1))


@pytest.mark.parametrize("windows", ["separate", "joint"])
@pytest.mark.parametrize("kind", ["batch", "sync_batch", "batch_renorm", "frozen_batch"])
def test_of_running_statistics_only_borders_change_a_class(kind: str, windows: str) -> None:
    found = changes(toy(), kind, windows=windows, overlap=0.25)

    assert found.share > 0
    assert (found.statistics_share, found.reference) == (0.0, "whole")
    assert found.validated == {"separate": "windows", "joint": "joint"}[windows]


@pytest.mark.parametrize("windows", ["separate", "joint"])
@pytest.mark.parametrize("kind", ["group", "instance"])
def test_statistics_of_samples_change_a_class_by_themselves(kind: str, windows: str) -> None:
    found = changes(toy(), kind, windows=windows)

    assert found.statistics_share is not None
    assert found.statistics_share > 0


def test_windows_that_show_all_change_no_class_with_running_statistics() -> None:
    found = changes(toy(), "batch", overlap="auto")

    assert (found.share, found.statistics_share, found.validated) == (0.0, 0.0, "windows")


def test_without_the_memory_smaller_windows_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window_references, "free_bytes", lambda _: 1000)

    found = changes(toy(), "group", overlap="auto")

    assert (found.reference, found.statistics_share) == ([4, 4, 4], None)


def test_windows_too_small_to_show_all_leave_the_borders_in() -> None:
    found = changes(UNet(3, c_in=1), "batch")

    assert (found.statistics_share, found.reference) == (None, "whole")


class Gated(nn.Module):
    """Sees the whole of what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv3d(1, 3, 3, padding=1), nn.AdaptiveAvgPool3d(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.conv(x)
        return y * self.pool(y).sigmoid()


def test_the_share_of_a_network_that_sees_everything_is_measured_nevertheless() -> None:
    found = changes(Gated(), "batch")

    assert found.share > 0
    assert (found.statistics_share, found.reference) == (None, "whole")
