"""train.memory_format: channels_last. Weights and inputs lie in memory with the channels of a position together."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_map_only

from syncnorm.trainer.contract.spec_findings import Finding
from syncnorm.trainer.models.activation_memory import called_parts

logger = logging.getLogger(__name__)

_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def use_channels_last(network: nn.Module) -> None:
    """Lay out the weights of `network` with four or five dimensions, and every input of such that it is called with.

    Of a LightningModule, also what the networks in it are called with.
    """
    weights = _weights(network)
    for weight in weights:
        weight.data = _laid_out(weight.data)
    parts = [part for part in called_parts(network) if _weights(part)]
    for part in {network, *parts}:
        if _lay_out_inputs not in part._forward_pre_hooks.values():
            part.register_forward_pre_hook(_lay_out_inputs, with_kwargs=True)
    logger.info("memory format is channels_last: %d weights, and the inputs of %d networks", len(weights), len(parts))


def use_contiguous(network: nn.Module) -> nn.Module:
    """Undo `use_channels_last`, if it was done, and return `network`: export needs it as it is written."""
    if _lay_out_inputs in network._forward_pre_hooks.values():
        for part in {network, *called_parts(network)}:
            _remove_hook(part)
        for weight in _weights(network):
            weight.data = weight.data.contiguous()
    return network


def without_effect(network: nn.Module) -> list[Finding]:
    """What the plan says where no weight of `network` has a format to choose."""
    if _weights(network):
        return []
    finding = Finding(
        code="memory_format_without_effect",
        path="train.memory_format",
        message="channels_last changes nothing here: no weight of the network has four or five dimensions, as those of "
        "convolutions over images and volumes have.",
        fix="Leave train.memory_format out.",
        severity="warning",
    )
    return [finding]


def _weights(network: nn.Module) -> list[nn.Parameter]:
    return [weight for weight in network.parameters() if not is_lazy(weight) and weight.dim() in _FORMATS]


def _remove_hook(part: nn.Module) -> None:
    for number in [number for number, hook in part._forward_pre_hooks.items() if hook is _lay_out_inputs]:
        del part._forward_pre_hooks[number]
        part._forward_pre_hooks_with_kwargs.pop(number, None)


def _lay_out_inputs(_: nn.Module, args: Any, kwargs: Any) -> Any:
    return tree_map_only(Tensor, _laid_out, (args, kwargs))


def _laid_out(tensor: Tensor) -> Tensor:
    kept = _FORMATS.get(tensor.dim())
    if kept is None or tensor.layout is not torch.strided or not tensor.is_floating_point():
        return tensor
    return tensor.contiguous(memory_format=kept)
