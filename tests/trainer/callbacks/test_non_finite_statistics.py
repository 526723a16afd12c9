"""Running statistics of layers that don't keep NaN out themselves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from syncnorm.norm import SyncBatchNorm
from syncnorm.trainer.callbacks.non_finite_statistics import StatisticsShield
from syncnorm.trainer.callbacks.statistics_alerts import StatisticsAlarm


class Tracking(SyncBatchNorm):
    """Somebody's subclass, which keeps its statistics in a way of its own."""

    def forward(self, x: Tensor) -> Tensor:
        assert self.running_mean is not None
        self.running_mean.lerp_(x.detach().mean((0, 2, 3)), 0.1)
        return super().forward(x)


class Alarm:
    def __init__(self) -> None:
        self.heard: list[tuple[list[str], int]] = []

    def undone(self, paths: list[str], step: int) -> None:
        self.heard.append((paths, step))


def step(layer: nn.Module, x: Tensor) -> Alarm:
    """One batch of training with the shield."""
    alarm, module = Alarm(), pl.LightningModule()
    module.network = nn.Sequential(layer)
    trainer = cast(Any, SimpleNamespace(is_global_zero=True, global_step=7))
    shield = StatisticsShield(cast(StatisticsAlarm, alarm))
    shield.on_train_start(trainer, module)
    shield.on_train_batch_start(trainer, module, x, 0)
    layer(x)
    shield.on_train_batch_end(trainer, module, None, x, 0)
    return alarm


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, Tracking])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_batch_leaves_no_trace_in_layers_that_take_anything(kind: type[nn.Module], bad: float) -> None:
    layer, x = kind(3), torch.randn(4, 3, 2, 2)
    step(layer, x)
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    x[0, 1, 0, 0] = bad

    alarm = step(layer, x)

    assert {path.rpartition(".")[2] for path in alarm.heard[0][0]} == {"0"}
    assert alarm.heard[0][1] == 7
    torch.testing.assert_close(dict(layer.named_buffers()), before, rtol=0, atol=0)


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, Tracking, SyncBatchNorm])
def test_good_batch_moves_the_statistics_and_alarms_nobody(kind: type[nn.Module]) -> None:
    layer = kind(3)

    alarm = step(layer, torch.randn(4, 3, 2, 2) + 1)

    assert alarm.heard == []
    assert cast(Tensor, layer.running_mean).abs().min() > 0
