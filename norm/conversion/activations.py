"""Activations as modules and as functions, before or after a normalization."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import fx, nn

from syncnorm.norm.conversion.dataflow import Flow

# Elementwise ones that a normalization with an activation of its own, or SELU, can stand for. No gates.
ACTIVATIONS = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.ELU,
    nn.CELU,
    nn.SELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Hardswish,
    nn.Softplus,
    nn.Tanh,
)
_FUNCTIONS = (
    F.relu,
    F.relu_,
    torch.relu,
    torch.relu_,
    F.relu6,
    F.leaky_relu,
    F.elu,
    F.selu,
    F.gelu,
    F.silu,
    F.mish,
    F.hardswish,
    F.softplus,
    torch.tanh,
)
_METHODS = ("relu", "relu_", "tanh", "tanh_")


def is_activation(module: nn.Module | None) -> bool:
    return type(module) in ACTIVATIONS


def is_activation_node(node: fx.Node, flow: Flow) -> bool:
    """Whether `node` computes an activation, as a module, a function or a method."""
    if node.op == "call_function":
        return node.target in _FUNCTIONS
    return node.target in _METHODS if node.op == "call_method" else is_activation(flow.modules.get(node))


def adjacent_activation(flow: Flow, layer: nn.Module) -> nn.Module | None:
    """The activation module after `layer`, or else before it, that nothing but the two use."""
    for module in (flow.after(layer), flow.before(layer)):
        if is_activation(module):
            return module
    return None


def has_adjacent_activation(flow: Flow, layer: nn.Module) -> bool:
    """Whether every output of `layer` goes into an activation, or every input comes from one."""
    readers = flow.readers(layer)
    inputs = [node.args[0] for node in flow.calls.get(layer, []) if node.args]
    is_before = bool(readers) and all(is_activation_node(node, flow) for node in readers)
    is_behind = bool(inputs) and all(isinstance(node, fx.Node) and is_activation_node(node, flow) for node in inputs)
    return is_before or is_behind
