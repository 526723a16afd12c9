"""Validation: every sample once, over all ranks, also where a user's step puts its network into training mode."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from syncnorm.trainer.contract.text import name_some
from syncnorm.trainer.data.loader import Batch
from syncnorm.trainer.diagnostics.group import on_its_own, shares_statistics, world_size
from syncnorm.trainer.training.tasks.task import Objective

logger = logging.getLogger(__name__)


class OwnStatistics(Callback):
    """While a user's module validates or tests, layers exchange nothing and keep their running statistics.

    Such a step may train its network's mode for a moment, as for the losses of a detector, which has none in eval mode.
    Ranks may have unequal numbers of batches there, so that one would wait for an exchange for ever. Each rank
    normalizes with its own batch then. Running statistics would part, and know samples that are held out.
    """

    def __init__(self, group_of_one: Callable[[], dist.ProcessGroup | None]) -> None:
        self._group_of_one = group_of_one
        self._group: dist.ProcessGroup | None = None
        self._within = ExitStack()
        self._before: dict[str, dict[str, Tensor]] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        if world_size() > 1 and any(map(shares_statistics, pl_module.modules())):
            self._group = self._group_of_one()

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        if self._group is None:
            return
        self._before = {
            path: {name: buffer.clone() for name, buffer in layer.named_buffers(recurse=False)}
            for path, layer in pl_module.named_modules()
            if shares_statistics(layer)
        }
        self._within.enter_context(on_its_own(pl_module, self._group))

    @torch.no_grad()
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._within.close()
        changed = []
        for path, kept in self._before.items():
            buffers = dict(pl_module.get_submodule(path).named_buffers(recurse=False))
            if any(not torch.equal(buffers[name], buffer) for name, buffer in kept.items()):
                changed.append(path)
                for name, buffer in kept.items():
                    buffers[name].copy_(buffer)
        self._before = {}
        if changed and trainer.is_global_zero and not trainer.sanity_checking:
            logger.warning(
                "validation ran %s in training mode: each worker used statistics of its own batch, and running "
                "statistics stay as training left them",
                name_some(changed),
            )

    on_test_epoch_start = on_validation_epoch_start
    on_test_epoch_end = on_validation_epoch_end


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
