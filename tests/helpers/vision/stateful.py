"""Data modules with torchdata's loader, which keeps a state of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import IterableDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from tests.helpers.trainer.own_modules import Points


class StatefulPoints(Points):
    def train_dataloader(self) -> Any:
        options = self.hparams
        return StatefulDataLoader(
            self.points, options["batch_size"], shuffle=options["shuffle"], num_workers=options["num_workers"]
        )


class _Stream(IterableDataset[Any]):
    """A stream that can be read from the middle."""

    def __init__(self, points: Any, noise: float) -> None:
        self.points, self.noise = points, noise
        self.next = 0

    def __iter__(self) -> Any:
        while self.next < len(self.points):
            self.next += 1
            x, y = self.points[self.next - 1]
            yield x + self.noise * torch.randn_like(x), y
        self.next = 0

    def state_dict(self) -> dict[str, int]:
        return {"next": self.next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.next = state["next"]


class StatefulStream(Points):
    def __init__(self, noise: float = 0.1, num_workers: int = 0) -> None:
        super().__init__(num_workers=num_workers)
        self.noise = noise

    def train_dataloader(self) -> Any:
        return StatefulDataLoader(_Stream(self.points, self.noise), 8, num_workers=self.hparams["num_workers"])
