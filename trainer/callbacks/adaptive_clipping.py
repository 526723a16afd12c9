"""Adaptive gradient clipping before each optimizer step."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from syncnorm.trainer.training.optim import clip_adaptive
from syncnorm.trainer.training.task_module import network_of


class AdaptiveClipping(Callback):
    """Lightning calls it once the gradients of 16-mixed have their true scale again, and before clip_grad_norm."""

    def __init__(self, factor: float) -> None:
        self._factor = factor

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        clip_adaptive(network_of(pl_module), self._factor)
