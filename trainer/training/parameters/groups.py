"""Groups of parameters that an optimizer of the spec treats alike: learning rate and weight decay."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from syncnorm.norm.conversion.fixup import scalars
from syncnorm.trainer.contract.spec import OptimizerSpec
from syncnorm.trainer.training.parameters.depth import layer_numbers
from syncnorm.trainer.training.parameters.matching import match

WEIGHTED = (nn.Linear, nn.Embedding, nn.modules.conv._ConvNd, nn.modules.rnn.RNNBase)
FIELD = "optimizer.groups"
_FIXUP_FACTOR = 0.1


@dataclass(frozen=True)
class _Key:
    """What parameters of one group have in common. match, layer: why, where the spec says so."""

    lr: float
    weight_decay: float
    factor: float
    match: str | None
    layer: int | None


def parameter_groups(model: nn.Module, spec: OptimizerSpec) -> list[dict[str, Any]]:
    """Parameters that need a gradient by what they have in common, each once, in the order of the model.

    A group tells by `match` and `layer` which glob and layer it is of, and by `lr_factor` how its learning rate relates
    to that of the spec; all of them are left out where the spec has no such thing.
    """
    groups: dict[_Key, list[nn.Parameter]] = {}
    for key, parameter in _keyed(model, spec):
        groups.setdefault(key, []).append(parameter)
    return [_group(key, parameters) for key, parameters in groups.items()]


def _keyed(model: nn.Module, spec: OptimizerSpec) -> Iterator[tuple[_Key, nn.Parameter]]:
    slow, found = set(scalars(model)), match(model, [group.match for group in spec.groups], FIELD)
    layers = _layers(model) if spec.layer_decay != 1 else {}
    last = max(layers.values(), default=0)
    for module, parameter in owned_parameters(model):
        group = spec.groups[found.parameters[parameter]] if parameter in found.parameters else None
        factor = group.lr_factor if group else 1.0
        layer = layers.get(parameter)
        if layer is not None:
            factor *= spec.layer_decay ** (last - layer)
        if parameter in slow:
            factor *= _FIXUP_FACTOR
        decay = group.weight_decay if group and group.weight_decay is not None else spec.weight_decay
        is_decayed = spec.decay_norm or is_weight(module, parameter)
        name = group.match if group else None
        yield _Key(spec.lr * factor, decay if is_decayed else 0.0, factor, name, layer), parameter


def _layers(model: nn.Module) -> dict[nn.Parameter, int]:
    numbers = layer_numbers(model)
    return {parameter: numbers[name] for name, parameter in model.named_parameters()}


def _group(key: _Key, parameters: list[nn.Parameter]) -> dict[str, Any]:
    why = {"match": key.match, "layer": key.layer, "lr_factor": key.factor if key.factor != 1 else None}
    group = {"params": parameters, "lr": key.lr, "weight_decay": key.weight_decay}
    return group | {name: value for name, value in why.items() if value is not None}


def owned_parameters(model: nn.Module) -> Iterator[tuple[nn.Module, nn.Parameter]]:
    """Every parameter that needs a gradient once, with the module that owns it."""
    seen: set[nn.Parameter] = set()
    for module in model.modules():
        for param in module.parameters(recurse=False):
            if param.requires_grad and param not in seen:
                seen.add(param)
                yield module, param


def is_weight(module: nn.Module, param: nn.Parameter) -> bool:
    """Whether `param`, owned by `module`, is a matrix or kernel, as opposed to a bias or a part of a norm."""
    if isinstance(module, WEIGHTED):
        return param.ndim > 1
    # Of a module unknown to us: a matrix or kernel, not a vector in any shape, such as (1, C, 1, 1) of a norm or
    # (O, 1, 1, 1), the lengths of weight normalization.
    return param.numel() > max(param.shape, default=1)


def base_rate(group: dict[str, Any]) -> float:
    """The learning rate that a group's own is a multiple of: that of the spec, as its schedule has it now."""
    return float(group["lr"]) / float(group.get("lr_factor", 1.0))
