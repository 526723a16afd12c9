"""The mean of each loss of a detector over an epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from syncnorm.trainer.data.loader import Batch
from syncnorm.trainer.ranks.exchange import gather

_SAMPLES = "samples"


class LossMeans(nn.Module):
    """`train/loss_classifier` and the like, and their sum `train/loss`: means over the images of all workers.

    The names are those that the network's first step gives; a restored state brings its own. Sums are in fp64.
    """

    def __init__(self, stage: str) -> None:
        super().__init__()
        self._stage = stage

    def update(self, losses: Mapping[str, Tensor], batch: Batch) -> None:
        """Count a batch. losses: weighted so that their mean over the workers is the loss of the whole batch."""
        for name, loss in losses.items():
            # The whole batch has world_size * n / weight images, and this worker's loss counts 1 / world_size in it.
            images = len(batch.y) / batch.weight if batch.weight else 0.0
            self._sum(name, loss.device).add_(loss.detach().double() * images)
        self._sum(_SAMPLES, next(iter(losses.values())).device).add_(len(batch.y))

    def compute(self) -> dict[str, Tensor]:
        """Entered by every worker."""
        of_workers = gather({name: float(value) for name, value in self.named_buffers()})
        sums = {name: math.fsum(one.get(name, 0.0) for one in of_workers) for name in of_workers[0]}
        samples = sums.pop(_SAMPLES, 0.0)
        means = {name: value / samples if samples else math.nan for name, value in sums.items()}
        values = {"loss": math.fsum(means.values()) if means else math.nan, **means}
        return {f"{self._stage}/{name}": torch.tensor(value, dtype=torch.float64) for name, value in values.items()}

    def reset(self) -> None:
        for buffer in self.buffers():
            buffer.zero_()

    def _sum(self, name: str, device: torch.device) -> Tensor:
        if name not in self._buffers:
            self.register_buffer(name, torch.zeros((), dtype=torch.float64, device=device))
        return self.get_buffer(name)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        for name, value in state_dict.items():
            self._sum(name.removeprefix(prefix), value.device)
        super()._load_from_state_dict(state_dict, prefix, *rest)
