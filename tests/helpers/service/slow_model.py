"""A model that takes its time, so that something can happen to its job while it trains."""

from __future__ import annotations

import time

from torch import Tensor, nn

from syncnorm.trainer.reporting import partition_detector as isolation

STEP_S = 0.1
SILENT_S = 20.0
"""In place of ten minutes, in every process that trains this model."""


class Slow(nn.Sequential):
    def __init__(self, num_classes: int = 10) -> None:
        isolation.SILENT_S = SILENT_S
        super().__init__(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            time.sleep(STEP_S)
        output: Tensor = super().forward(x)
        return output
