"""What a module saw of its own training, in a file for each rank: how often each hook ran, its weights at the end."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

HOOKS = (
    "setup",
    "configure_callbacks",
    "configure_model",
    "configure_optimizers",
    "configure_gradient_clipping",
    "on_fit_start",
    "on_train_start",
    "on_train_epoch_start",
    "on_before_batch_transfer",
    "transfer_batch_to_device",
    "on_after_batch_transfer",
    "on_train_batch_start",
    "on_before_zero_grad",
    "optimizer_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "optimizer_step",
    "lr_scheduler_step",
    "on_train_batch_end",
    "on_train_epoch_end",
    "on_validation_start",
    "on_validation_epoch_start",
    "on_validation_batch_start",
    "on_validation_batch_end",
    "on_validation_epoch_end",
    "on_validation_end",
    "training_step",
    "validation_step",
)


def counted(cls: type[Any]) -> type[Any]:
    """A class decorator: `calls` counts the hooks of an instance."""
    for name in HOOKS:
        setattr(cls, name, _counting(name, getattr(cls, name)))
    return cls


def _counting(name: str, method: Any) -> Any:
    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.calls[name] = self.calls.get(name, 0) + 1
        return method(self, *args, **kwargs)

    return call


class Telling(pl.LightningModule):
    """Writes what `facts` knows into the folder that the variable FACTS names, at the end of training."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, int] = {}
        self.noted: dict[str, Any] = {}

    def facts(self) -> dict[str, Any]:
        return {"calls": self.calls, "weights": digest(self), **self.noted}

    def on_train_end(self) -> None:
        if folder := os.environ.get("FACTS"):
            (Path(folder) / f"rank_{self.global_rank}.json").write_text(json.dumps(self.facts()))


def digest(module: torch.nn.Module) -> str:
    found = hashlib.sha256()
    for parameter in module.parameters():
        found.update(parameter.detach().cpu().numpy().tobytes())
    return found.hexdigest()
