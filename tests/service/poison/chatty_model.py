"""A model of a user that prints all the time: a job of it trains for real."""

from __future__ import annotations

from torch import Tensor, nn


class Chatty(nn.Sequential):
    def __init__(self, num_classes: int = 10) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        for number in range(2000 if self.training else 0):
            print(f"line {number} " + "x" * 90)
        output: Tensor = super().forward(x)
        return output
