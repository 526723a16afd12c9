"""Layers that are held in evaluation: they normalize by their running statistics and never update them."""

from __future__ import annotations

from types import MethodType

from torch import Tensor, nn

from syncnorm.norm.statistics.frozen_layers import frozen_form
from syncnorm.norm.torch_compat import NormBase


def can_freeze_statistics(layer: nn.Module) -> bool:
    """Whether it keeps running statistics that training would update."""
    return isinstance(layer, NormBase) and isinstance(layer.running_mean, Tensor)


def freeze_statistics(layer: nn.Module) -> None:
    """Hold `layer` in evaluation, whatever `train()` is called on it or on a module around it.

    The layer stays what it is: its class, parameters and keys of the state_dict. A deep copy of it is held, too.
    """
    layer.training = False
    vars(layer).update(train=MethodType(_stay_in_evaluation, layer), is_frozen=True)


def unfreeze_statistics(layer: nn.Module) -> None:
    """Let `layer` train again, from now on."""
    for name in ("train", "is_frozen"):
        vars(layer).pop(name, None)
    layer.train()


def has_frozen_statistics(layer: nn.Module) -> bool:
    """Whether its statistics do not change: it is held, or of a class without an update, also of another library."""
    return getattr(layer, "is_frozen", False) is True or frozen_form(layer) is not None


def _stay_in_evaluation(layer: nn.Module, mode: bool = True) -> nn.Module:  # noqa: ARG001 - torch's signature
    layer.training = False
    return layer
