"""A module in the form of the Lightning-Hydra template, and constructors that take a configuration as one object."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn


class TemplateModule(pl.LightningModule):
    """Its optimizer and schedule come as functions that still take the parameters, annotated as what they make."""

    def __init__(
        self,
        net: nn.Module,
        optimizer: torch.optim.Optimizer,  # noqa: ARG002
        scheduler: torch.optim.lr_scheduler.LRScheduler,  # noqa: ARG002
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False, ignore=["net"])
        self.net = net
        self.compiled = compile

    def forward(self, x: Tensor) -> Any:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:  # noqa: ARG002
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = self.hparams["optimizer"](params=self.parameters())
        return [optimizer], [self.hparams["scheduler"](optimizer=optimizer)]


class TakesNamespace(nn.Module):
    def __init__(self, hparams: Namespace) -> None:
        super().__init__()
        self.layer = nn.Linear(hparams.width, 7)


class TakesLayers(nn.Module):
    def __init__(self, layers: list[nn.Module], norm: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers, norm(4))


class TakesAnything(pl.LightningModule):
    """Has no annotations, as many a module."""

    def __init__(self, optimizer=None, net=None):  # type: ignore[no-untyped-def]
        super().__init__()
        self.optimizer, self.net = optimizer, net
