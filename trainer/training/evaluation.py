"""Validation outside of training: every sample once, over all ranks."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from syncnorm.trainer.data import DataInfo
from syncnorm.trainer.data.loader import Batch
from syncnorm.trainer.training.tasks import Scores, task_loss


@torch.no_grad()
def evaluate(network: nn.Module, info: DataInfo, batches: Iterable[Batch], device: torch.device) -> dict[str, float]:
    """`val/…` scores of `network` in eval mode. Entered by every rank."""
    scores = Scores(info, "val").to(device)
    was_training = network.training
    network.eval()
    try:
        for batch in batches:
            x, y = batch.x.to(device), batch.y.to(device)
            output = network(x)
            scores.update(output, y, task_loss(info, output, y))
        return {name: float(value) for name, value in scores.compute().items()}
    finally:
        network.train(was_training)
