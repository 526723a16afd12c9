"""Keeps NaN and infinity out of running statistics, where they would stay for ever."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from syncnorm.norm import SyncBatchNorm
from syncnorm.trainer.callbacks.statistics_alerts import StatisticsAlarm
from syncnorm.trainer.training.task_module import network_of


class StatisticsShield(Callback):
    """Undoes a batch's update of all running statistics if one of them is no longer finite after it.

    torch's own BatchNorm accepts any value, and a running mean of NaN stays NaN through any number of good batches.
    SyncBatchNorm skips such a batch itself, on all ranks alike, and is left alone here. For other layers, subclasses
    of it included, each rank undoes its own.
    """

    def __init__(self, alarm: StatisticsAlarm) -> None:
        self._alarm = alarm
        self._paths: list[str] = []
        self._buffers: list[Tensor] = []
        self._running: list[Tensor] = []
        self._before: list[Tensor] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        named = {
            path: layer
            for path, layer in network_of(pl_module).named_modules()
            if isinstance(getattr(layer, "running_mean", None), Tensor) and type(layer) is not SyncBatchNorm
        }
        layers = list(named.values())
        self._paths = list(named)
        self._running = [tensor for layer in layers for tensor in (layer.running_mean, layer.running_var)]  # type: ignore[misc]
        self._buffers = [buffer for layer in layers for buffer in layer.buffers(recurse=False)]
        self._before = [buffer.clone() for buffer in self._buffers]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._buffers:
            torch._foreach_copy_(self._before, self._buffers)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._running and not math.isfinite(torch.cat(self._running).sum().item()):
            if trainer.is_global_zero:
                self._alarm.undone(self._not_finite(), trainer.global_step)
            torch._foreach_copy_(self._buffers, self._before)

    def _not_finite(self) -> list[str]:
        pairs = zip(self._running[::2], self._running[1::2], strict=True)
        return [
            path
            for path, (mean, var) in zip(self._paths, pairs, strict=True)
            if not (mean.isfinite().all() and var.isfinite().all())
        ]
