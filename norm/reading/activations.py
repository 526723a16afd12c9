"""The activation beside a normalization: as a module or a function, after or before it, through dropout."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import fx, nn

from syncnorm.norm.reading.dataflow import Flow, input_of
from syncnorm.norm.reading.elementwise import ACTIVATIONS, Effect

_FUNCTIONS = (
    F.relu,
    F.relu_,
    torch.relu,
    torch.relu_,
    F.relu6,
    F.leaky_relu,
    F.prelu,
    torch.prelu,
    F.rrelu,
    F.elu,
    F.celu,
    F.selu,
    F.gelu,
    F.silu,
    F.mish,
    F.hardswish,
    F.softplus,
    F.softsign,
    F.tanh,
    torch.tanh,
    F.hardtanh,
    F.logsigmoid,
    F.threshold,
    F.tanhshrink,
    F.softshrink,
    F.hardshrink,
)
_METHODS = ("relu", "relu_", "tanh", "tanh_")
_GATE_FUNCTIONS = (torch.sigmoid, F.sigmoid, F.hardsigmoid)
_GATE_METHODS = ("sigmoid", "sigmoid_")
_DROPOUT_FUNCTIONS = (
    F.dropout,
    F.dropout1d,
    F.dropout2d,
    F.dropout3d,
    F.alpha_dropout,
    F.feature_alpha_dropout,
)

_PRODUCTS = (operator.mul, operator.imul, torch.mul, torch.multiply)
_PRODUCT_METHODS = ("mul", "mul_", "multiply")
_ARITHMETIC = (
    *_PRODUCTS,
    operator.add,
    operator.sub,
    operator.truediv,
    operator.neg,
    torch.add,
    torch.sub,
    torch.div,
    torch.clamp,
)

USED_ELSEWHERE = "the activation next to it is used elsewhere too, or is not a module, and stays"

EffectOf = Callable[[nn.Module], Effect | None]


def is_activation(module: nn.Module | None) -> bool:
    """Whether it is one of torch's own activations."""
    return type(module) in ACTIVATIONS


def is_activation_call(node: fx.Node) -> bool:
    """Whether `node` calls an activation as a function or a method."""
    return (node.op == "call_function" and node.target in _FUNCTIONS) or (
        node.op == "call_method" and node.target in _METHODS
    )


@dataclass(frozen=True)
class NearbyActivation:
    """What acts on each value next to a layer.

    module: the activation module that belongs to the layer alone, so that another one may stand for both. stays: why
    one that is there can't go. Both empty: there is none.
    """

    module: nn.Module | None = None
    stays: str = ""


def nearby_activation(flow: Flow, layer: nn.Module, effect_of: EffectOf) -> NearbyActivation:
    """The activation after `layer`, or else before it; dropout and its like in between are looked through."""
    if layer not in flow.calls:
        return NearbyActivation(stays="what follows could not be traced; an activation after it stays")
    after = {node_effect(node, flow, effect_of) for node in readers_of(flow, layer, effect_of)}
    if after and after <= {"activation", "gate"}:
        module = _only_one_after(flow, layer, effect_of)
        why = USED_ELSEWHERE if after == {"activation"} else "the gate next to it, with outputs in [0, 1], stays"
        return NearbyActivation(module) if module is not None else NearbyActivation(stays=why)
    sources = [_source_of(node, flow, effect_of) for node in flow.calls[layer]]
    if all(source is not None and node_effect(source, flow, effect_of) == "activation" for source in sources):
        module = _only_one_before(flow, layer, effect_of)
        return NearbyActivation(module) if module is not None else NearbyActivation(stays=USED_ELSEWHERE)
    return NearbyActivation()


def readers_of(flow: Flow, layer: nn.Module, effect_of: EffectOf) -> list[fx.Node]:
    """The nodes that read an output of `layer`, through those that hand it on."""
    return [reader for node in flow.calls.get(layer, []) for reader in _readers(node, flow, effect_of)]


def writes_into_shared(flow: Flow, layer: nn.Module, effect_of: EffectOf) -> set[nn.Module]:
    """The modules behind `layer` that, with `layer` removed, would write into a value that others read too."""
    nodes = [node for node in flow.calls.get(layer, []) if _has_shared_input(node, flow, effect_of)]
    return {module for node in nodes for module in _behind(node, flow, effect_of) if getattr(module, "inplace", False)}


def node_effect(node: fx.Node, flow: Flow, effect_of: EffectOf) -> Effect | None:
    """What `node` does to each value of its first input."""
    if (module := flow.modules.get(node)) is not None:
        return effect_of(module)
    if is_activation_call(node) or is_gated_by_itself(node, flow, effect_of):
        return "activation"
    if node.op == "call_function" and node.target in _DROPOUT_FUNCTIONS:
        return "identity"
    is_gate = node.target in (_GATE_FUNCTIONS if node.op == "call_function" else _GATE_METHODS)
    return "gate" if is_gate and node.op in ("call_function", "call_method") else None


def is_gated_by_itself(node: fx.Node, flow: Flow, effect_of: EffectOf) -> bool:
    """Whether `node` is an activation written out, a value times a gate of the same value: x * torch.sigmoid(x)."""
    return any(_is_function_of(gate, value, flow, effect_of) for value, gate in _factors(node))


def _factors(node: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
    """The two factors of a product of two values, each as the first and as the second."""
    is_function = node.op == "call_function" and node.target in _PRODUCTS
    is_method = node.op == "call_method" and node.target in _PRODUCT_METHODS
    factors = [argument for argument in node.args if isinstance(argument, fx.Node)]
    if (is_function or is_method) and len(factors) == 2:
        yield factors[0], factors[1]
        yield factors[1], factors[0]


def _is_function_of(gate: fx.Node, value: fx.Node, flow: Flow, effect_of: EffectOf) -> bool:
    """Whether each number in `gate` comes from the one at its place in `value` alone, by a gate or an activation."""
    bends = False
    while gate is not value:
        if len(gate.users) != 1 or len(gate.all_input_nodes) != 1:
            return False
        bending = node_effect(gate, flow, effect_of) in ("activation", "gate")
        if not bending and not (gate.op == "call_function" and gate.target in _ARITHMETIC):
            return False
        bends, gate = bends or bending, gate.all_input_nodes[0]
    return bends


def _is_within_product(node: fx.Node, value: fx.Node, flow: Flow, effect_of: EffectOf) -> bool:
    """Whether `node` reads `value` only to gate it: the product reads it too, and stands for both."""
    while len(node.users) == 1:
        user = next(iter(node.users))
        if value in user.args and is_gated_by_itself(user, flow, effect_of):
            return True
        node = user
    return False


def _readers(node: fx.Node, flow: Flow, effect_of: EffectOf) -> Iterator[fx.Node]:
    for user in node.users:
        if node_effect(user, flow, effect_of) == "identity":
            yield from _readers(user, flow, effect_of)
        elif not _is_within_product(user, node, flow, effect_of):
            yield user


def _source_of(node: fx.Node, flow: Flow, effect_of: EffectOf) -> fx.Node | None:
    """The node whose output goes into `node`, through those that hand it on."""
    source = input_of(node)
    while source is not None and node_effect(source, flow, effect_of) == "identity":
        source = input_of(source)
    return source


def _only_one_after(flow: Flow, layer: nn.Module, effect_of: EffectOf) -> nn.Module | None:
    """The activation module that alone reads what `layer` gives, if each is called once."""
    node = flow.only_call(layer)
    while node is not None and len(node.users) == 1:
        node = next(iter(node.users))
        found = node_effect(node, flow, effect_of)
        if found != "identity":
            return _called_once(node, flow) if found == "activation" else None
    return None


def _only_one_before(flow: Flow, layer: nn.Module, effect_of: EffectOf) -> nn.Module | None:
    """The activation module whose output `layer` alone reads, if each is called once."""
    node = flow.only_call(layer)
    while node is not None:
        node = input_of(node)
        if node is None or len(node.users) != 1:
            return None
        found = node_effect(node, flow, effect_of)
        if found != "identity":
            return _called_once(node, flow) if found == "activation" else None
    return None


def _called_once(node: fx.Node, flow: Flow) -> nn.Module | None:
    module = flow.modules.get(node)
    return module if module is not None and flow.only_call(module) is node else None


def _has_shared_input(node: fx.Node, flow: Flow, effect_of: EffectOf) -> bool:
    """Whether the caller, or another node, has what goes into `node`, through those that hand it on."""
    source = input_of(node)
    while source is not None and len(source.users) == 1 and node_effect(source, flow, effect_of) == "identity":
        source = input_of(source)
    return source is None or source.op == "placeholder" or len(source.users) > 1


def _behind(node: fx.Node, flow: Flow, effect_of: EffectOf) -> Iterator[nn.Module]:
    """The modules that read `node`, and those that read what these hand on."""
    for user in node.users:
        if (module := flow.modules.get(user)) is not None:
            yield module
        if node_effect(user, flow, effect_of) == "identity":
            yield from _behind(user, flow, effect_of)
