"""Which modules count as layers, and what is observed of them in a forward pass: inputs, outputs, order of calls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from syncnorm.norm.reading.activations import is_activation
from syncnorm.norm.statistics.moments import Moments, measure, merge
from syncnorm.trainer.training.parameters.groups import is_weight

_PARAMETRIZED = ".parametrizations."
# A slope this flat lets less than a hundredth of a gradient through.
FLAT = 1e-2


def weights_of_layers(network: nn.Module) -> dict[str, tuple[str, ...]]:
    """Names of the weights that are trained, by the path of their layer: matrices and kernels, no biases, no norms.

    The weight of a reparametrized layer is what the optimizer sees of it, e.g. the directions of weight normalization.
    """
    layers: dict[str, tuple[str, ...]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad and is_weight(network.get_submodule(name.rpartition(".")[0]), parameter):
            path = layer_of(name)
            layers[path] = (*layers.get(path, ()), name)
    return layers


def layer_of(parameter: str) -> str:
    """The path of the module that a parameter belongs to, by the parameter's name."""
    owner, found, _ = parameter.partition(_PARAMETRIZED)
    return owner if found else parameter.rpartition(".")[0]


@dataclass
class LayerObservations:
    """What one forward pass showed of a network on this worker.

    order: paths of all modules as they were first called. inputs: what a layer took, through views of its own, so that
    a gradient with respect to them is what this layer alone passes down. outputs: moments of each channel, by path.
    slopes: for activations, per channel, (values, flat values) as (2, C).
    """

    order: list[str] = field(default_factory=list)
    inputs: dict[str, list[Tensor]] = field(default_factory=dict)
    outputs: dict[str, Moments] = field(default_factory=dict)
    slopes: dict[str, Tensor] = field(default_factory=dict)


@contextmanager
def watch(network: nn.Module) -> Iterator[LayerObservations]:
    """Within, a forward pass is noted down. A module that is called more than once is seen as one, over all calls."""
    observations, weighted = LayerObservations(), weights_of_layers(network)
    with ExitStack() as hooks:
        for path, module in network.named_modules():
            hooks.callback(module.register_forward_pre_hook(partial(_note_call, observations, path)).remove)
            if path in weighted:
                hooks.callback(module.register_forward_pre_hook(partial(_note_input, observations, path)).remove)
            if path in weighted or is_elementwise(module):
                hooks.callback(module.register_forward_hook(partial(_note_output, observations, path)).remove)
            if is_elementwise(module):
                # Before the call, for it may work in place.
                hooks.callback(module.register_forward_pre_hook(partial(_note_slope, observations, path)).remove)
        yield observations


def is_elementwise(module: nn.Module) -> bool:
    """Whether `module` is an activation that has a slope at each of its values."""
    return is_activation(module) or isinstance(module, nn.Sigmoid)


def flat_values(activation: nn.Module, x: Tensor) -> Tensor:
    """Where |f'(x)| < FLAT, as booleans of the shape of x."""
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        # Not activation(leaf): that would call the hooks of whoever watches.
        (slope,) = torch.autograd.grad(activation.forward(leaf.clone()).sum(), leaf)
    flat: Tensor = slope.abs() < FLAT
    return flat


def _note_call(observations: LayerObservations, path: str, _module: nn.Module, _args: Any) -> None:
    if path not in observations.order:
        observations.order.append(path)


def _note_input(
    observations: LayerObservations, path: str, _module: nn.Module, args: tuple[Any, ...]
) -> tuple[Any, ...] | None:
    if not args or not isinstance(args[0], Tensor) or not args[0].requires_grad:
        return None  # the first layer has none below it
    own = args[0].view_as(args[0])
    observations.inputs.setdefault(path, []).append(own)
    return (own, *args[1:])


def _note_output(observations: LayerObservations, path: str, module: nn.Module, _args: Any, output: Any) -> None:
    first = output[0] if isinstance(output, tuple) else output
    if not isinstance(first, Tensor) or first.dim() < 2:
        return
    moments = measure(_channels_second(module, first.detach()))
    key = _key(observations.outputs, path, len(moments.mean))
    known = observations.outputs.get(key)
    observations.outputs[key] = moments if known is None else _union(known, moments)


def _note_slope(observations: LayerObservations, path: str, module: nn.Module, args: tuple[Any, ...]) -> None:
    if args[0].dim() < 2:
        return
    flat = flat_values(module, args[0]).transpose(0, 1).flatten(1)
    counts = torch.stack([torch.full((len(flat),), flat.shape[1], device=flat.device), flat.sum(1)]).double()
    key = _key(observations.slopes, path, len(flat))
    observations.slopes[key] = observations.slopes[key] + counts if key in observations.slopes else counts


def _key(known: dict[str, Any], path: str, channels: int) -> str:
    """The path, with the number of channels where a module is used again for another number of them."""
    entry = known.get(path)
    width = None if entry is None else entry.mean.shape[0] if isinstance(entry, Moments) else entry.shape[1]
    return path if width in (None, channels) else f"{path}.{channels}"


def _channels_second(module: nn.Module, output: Tensor) -> Tensor:
    return output.movedim(-1, 1) if isinstance(module, nn.Linear) else output


def _union(first: Moments, second: Moments) -> Moments:
    both = [first, second]
    return merge(
        torch.stack([part.count for part in both]),
        torch.stack([part.mean for part in both]),
        torch.stack([part.m2 for part in both]),
    )
