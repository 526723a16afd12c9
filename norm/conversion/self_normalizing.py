"""Self-normalizing networks: activations that keep mean 0 and variance 1 by themselves."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import nn

from syncnorm.norm.conversion.edits import Step
from syncnorm.norm.layers.weight import LINEAR_LAYERS, copied
from syncnorm.norm.paths import errors_named, modules_with_paths
from syncnorm.norm.reading.activations import is_activation_call, is_gated_by_itself
from syncnorm.norm.reading.dataflow import Flow
from syncnorm.norm.reading.elementwise import effect

_FEATURE_DROPOUTS = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


def self_normalizing_steps(model: nn.Module, flow: Flow, *, with_bias: bool) -> Iterator[Step]:
    """The exchanges beside the normalization layers that make `model` self-normalizing.

    Activations become SELU: y = 1.0507 * x for x > 0, 1.0507 * 1.6733 * (e^x - 1) else. Dropout becomes AlphaDropout,
    which keeps mean and variance, and channel dropout its form for channels. Weights of convolutions and linear layers
    are drawn anew from N(0, 1 / fan_in), biases are 0.

    with_bias: layers without a bias get one.
    Raises: ValueError where an activation is a function call, which no conversion can exchange.
    See: Klambauer et al. 2017, arXiv:1706.02515.
    """
    for node in flow.nodes():
        if is_activation_call(node):
            name = node.target if isinstance(node.target, str) else node.target.__name__
            raise ValueError(
                f"selu needs every activation to be a module, but the model calls {name} as a function, at {node.name}."
                " Use a module such as nn.ReLU there."
            )
        if is_gated_by_itself(node, flow, effect):
            raise ValueError(
                f"selu needs every activation to be a module, but the model writes one out at {node.name}, as a value "
                "times its own gate: x * sigmoid(x). Use an nn.SiLU module there."
            )
    for module, paths in modules_with_paths(model):
        if effect(module) == "activation":
            yield Step(paths, module, nn.SELU())  # not in place: with the normalization gone, others may read its input
        elif type(module) is nn.Dropout:
            yield Step(paths, module, nn.AlphaDropout(module.p, module.inplace))
        elif type(module) in _FEATURE_DROPOUTS:
            yield Step(paths, module, nn.FeatureAlphaDropout(module.p, module.inplace))  # type: ignore[arg-type]
        elif isinstance(module, LINEAR_LAYERS):
            with errors_named(f"{paths[0] or 'The model'} can't become self-normalizing"):
                new = _lecun(module, with_bias)
            yield Step(paths, module, new, "weights initialised again")


def _lecun(layer: nn.Module, with_bias: bool) -> nn.Module:
    new = copied(layer, with_bias=with_bias)
    weight = new.get_parameter("weight")
    with torch.no_grad():
        weight.normal_(0, 1 / math.sqrt(weight[0].numel()))
        if new.bias is not None:
            new.get_parameter("bias").zero_()
    return new
