"""Validation outside of training: every sample once, over all ranks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import nn

from syncnorm.trainer.data.loader import Batch
from syncnorm.trainer.training.tasks.task import Objective


@torch.no_grad()
def evaluate(network: nn.Module, task: Objective, batches: Iterable[Batch], device: torch.device) -> dict[str, float]:
    """`val/…` scores of `network` in eval mode. Entered by every rank."""
    task = task.to(device, next((each.dtype for each in network.parameters()), torch.float32))
    scores: Any = task.scores("val").to(device)
    was_training = network.training
    network.eval()
    try:
        for batch in batches:
            task.count(network, move_data_to_device(batch, device), scores)
        return {name: float(value) for name, value in scores.compute().items()}
    finally:
        network.train(was_training)
