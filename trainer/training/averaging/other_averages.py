"""Finds averages of the weights that a user's module or callbacks keep themselves."""

from __future__ import annotations

import re

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from torch.optim.swa_utils import AveragedModel

_NAMES = re.compile(r"EMA|Ema(?![a-z])|SWA|Swa(?![a-z])|WeightAverag")
"""In names of classes, such as timm's ModelEmaV3."""


def require_no_other(trainer: Trainer, module: LightningModule) -> None:
    """Raises: ValueError naming the class of another average: validation can judge one only."""
    candidates = [*trainer.callbacks, *module.modules()]  # type: ignore[attr-defined]
    for one in candidates:
        is_known = isinstance(one, StochasticWeightAveraging | WeightAveraging | AveragedModel)
        if is_known or _NAMES.search(type(one).__name__):
            raise ValueError(
                f"train.average must be left out, because {type(module).__name__} brings {type(one).__name__}, which "
                "averages the weights, too. Leave one of them out."
            )
