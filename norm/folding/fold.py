"""Folds normalization into the neighbouring convolutions and linear layers, for inference."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from syncnorm.norm.conversion.fixup import FixupLayer, ScalarBias
from syncnorm.norm.folding.absorption import (
    ChannelAffine,
    absorb_behind,
    absorb_in_front,
    in_channels,
    takes_behind,
    takes_in_front,
)
from syncnorm.norm.folding.copies import deep_copy
from syncnorm.norm.folding.obstacles import FlowOfCalls, Passes
from syncnorm.norm.kind import KINDS
from syncnorm.norm.layers.box_cox import BoxCox
from syncnorm.norm.layers.evo_norm import EvoNormS0
from syncnorm.norm.layers.weight import WeightStandardization, is_weight_normalized, out_channels
from syncnorm.norm.paths import modules_with_paths, put
from syncnorm.norm.reading.compiled_parts import compiled_parts
from syncnorm.norm.reading.elementwise import DROPOUTS, effect
from syncnorm.norm.reading.norm_act import NormAct, is_identity
from syncnorm.norm.reading.readers import named_tail, read_source
from syncnorm.norm.torch_compat import has_forward_hooks


@dataclass(frozen=True)
class Folded:
    """What became of one layer: absorbed by the module at `into`, or kept, for `reason`.

    >>> norm.fold(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)))[1]
    [Folded(path='1', kind='batch', into='0', reason=None)]
    """

    path: str
    kind: str
    into: str | None = None
    reason: str | None = None


def fold(model: nn.Module) -> tuple[nn.Module, list[Folded]]:
    """A copy of `model` for inference with every layer folded away that can be, exactly; `model` is left alone.

    conv, linear or transposed conv, then batch normalization: W' = W * s, b' = b * s + t with s = weight / sqrt(var +
        eps), t = bias - mean * s, computed in float64. So for every kind with running statistics.
    batch normalization, then conv without zero padding or linear: W' = W * s per input channel, b' = b + sum W * t.
        With zero padding it would be wrong at the borders.
    Weight normalization and standardization: the weight they stand for, bit for bit. Fixup: its scalars, as above.
    Two layers must follow each other directly, and nothing else may read what is between, nor the weights themselves;
    the data flow is taken from torch.fx. A linear layer next to one-dimensional normalization is taken to work on
    (N, C), and next to others stays. A folded layer becomes nn.Identity, or the activation that it had inside.

    Returns: the copy, in eval mode, and for each normalization what became of it.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval()
    >>> folded, report = norm.fold(model)
    >>> folded[1], report[0].into
    (Identity(), '0')
    >>> x = torch.randn(1, 3, 8, 8)
    >>> torch.testing.assert_close(folded(x), model(x))
    """
    folded = deep_copy(model).eval()
    compiled = [
        Folded(part.path, type(part.module).__name__, reason=f"{part.message} {part.fix}")
        for part in compiled_parts(folded)
    ]
    report = [*compiled, *_fold_weights(folded), *_fold_scalars(folded)]
    folded, of_layers = _fold_layers(folded)
    return folded.eval(), report + of_layers


class _CannotFoldError(Exception):
    """Why a layer stays."""


def _fold_weights(model: nn.Module) -> Iterator[Folded]:
    """Put the weight itself in the place of weight normalization and standardization: the bits the model computes."""
    for path, module in model.named_modules():
        if not parametrize.is_parametrized(module, "weight"):
            continue
        chains: Any = module.parametrizations
        is_standardized = isinstance(chains.weight[0], WeightStandardization)
        kind = "weight_standardization" if is_standardized else "weight"
        if len(chains) > 1 or len(chains.weight) > 1 or not (is_standardized or is_weight_normalized(module)):
            yield Folded(path, kind, reason="it has other parametrizations too")
            continue
        old = next(chains.weight.parameters())
        weight = chains.weight().detach()
        # Not remove_parametrizations: it would strip the class, which the copy has in common with its model.
        module.__class__ = parametrize.type_before_parametrizations(module)
        del module.parametrizations
        module.register_parameter("weight", nn.Parameter(weight, requires_grad=old.requires_grad))
        yield Folded(path, kind, into=path)


def _fold_scalars(model: nn.Module) -> Iterator[Folded]:
    """Absorb the scalars around Fixup's layers; a bias in front of zero padding stays."""
    for module, paths in modules_with_paths(model):
        if not isinstance(module, FixupLayer):
            continue
        ones = module.bias_in.new_ones(out_channels(module.layer), dtype=torch.float64)
        scale = ones if module.scale is None else module.scale.detach().double() * ones
        shift = 0 * ones if module.bias_out is None else module.bias_out.detach().double() * ones
        absorb_behind(module.layer, ChannelAffine(scale, shift))
        module.scale = module.bias_out = None
        ones = ones.new_ones(in_channels(module.layer))
        before = ChannelAffine(ones, module.bias_in.detach().double() * ones)
        if takes_in_front(module.layer, before):
            absorb_in_front(module.layer, before)
            for path in paths:
                put(model, path, module.layer)
            yield Folded(paths[0], "fixup", into=paths[0])
        else:
            yield Folded(paths[0], "fixup", reason="the bias in front of its zero padding is not one at the borders")


def _fold_layers(model: nn.Module) -> tuple[nn.Module, list[Folded]]:
    paths = {module: path for path, module in model.named_modules()}
    flow, left, report = FlowOfCalls(model), dict[nn.Module, nn.Module](), list[Folded]()

    def passes(module: nn.Module) -> bool:
        return is_identity(left.get(module, module)) or isinstance(module, DROPOUTS)

    for layer, path in paths.items():
        if (result := _fold_layer(layer, path, flow, passes, paths)) is not None:
            report.append(result)
            if result.into is not None:
                left[layer] = _rest_of(layer, path)
    for module, places in modules_with_paths(model):
        if isinstance(module, NormAct) and isinstance(module, nn.Identity):  # a conversion has removed it
            left[module] = _rest_of(module, places[0])
        for path in places if module in left else ():
            model = put(model, path, left[module])
    return model, report


def _rest_of(layer: nn.Module, path: str) -> nn.Module:
    """What `layer` does besides its normalization."""
    tail = _active_tail(layer, path)
    return nn.Sequential(OrderedDict(tail)) if tail else nn.Identity()


def _active_tail(layer: nn.Module, path: str) -> dict[str, nn.Module]:
    source = read_source(layer, path)
    tail = layer.tail if isinstance(layer, NormAct) else named_tail(layer, source) if source is not None else {}
    return {name: module for name, module in tail.items() if effect(module) != "identity"}


def _fold_layer(
    layer: nn.Module, path: str, flow: FlowOfCalls, passes: Passes, paths: Mapping[nn.Module, str]
) -> Folded | None:
    kind = type(layer).__name__
    try:
        if (found := _kind(layer, path)) is None:
            return None
        kind = found
        if layer not in flow.given.calls:
            raise _CannotFoldError(f"its place in the data flow is not known ({flow.given.why_unknown(path)})")
        return Folded(path, kind, into=paths[_absorb(layer, path, kind, flow, passes)])
    except _CannotFoldError as error:
        return Folded(path, kind, reason=str(error))


def _absorb(layer: nn.Module, path: str, kind: str, flow: FlowOfCalls, passes: Passes) -> nn.Module:
    """Fold `layer` into a neighbour and return that one."""
    if has_forward_hooks(layer):
        raise _CannotFoldError("it has hooks, which would no longer run")
    before = flow.given.before(layer, passes)
    after = None if _active_tail(layer, path) else flow.given.after(layer, passes)
    obstacle = None
    for neighbour, takes, absorb in ((before, takes_behind, absorb_behind), (after, takes_in_front, absorb_in_front)):
        if neighbour is not None and takes(neighbour, affine := _as_affine(layer, kind, neighbour)):
            obstacle = flow.obstacle(layer, neighbour, passes)
            if obstacle is None:
                absorb(neighbour, affine)
                return neighbour
    _as_affine(layer, kind, None)
    raise _CannotFoldError(
        obstacle
        or "it needs a convolution or linear layer directly before it, or directly after it and without zero padding; "
        f"it reads {_described(before)} and is read by {_described(after)}"
    )


def _as_affine(layer: nn.Module, kind: str, neighbour: nn.Module | None) -> ChannelAffine:
    if isinstance(layer, ScalarBias):
        ones = layer.shift.new_ones(getattr(neighbour, "out_channels", 1), dtype=torch.float64)
        return ChannelAffine(ones, layer.shift.detach().double() * ones)
    if isinstance(layer, EvoNormS0) and not layer.activation and layer.weight is not None and layer.bias is not None:
        return ChannelAffine(layer.weight.detach().double(), layer.bias.detach().double())
    if isinstance(layer, BoxCox):
        raise _CannotFoldError("it takes a power of each value, which is no scale and shift")
    source = read_source(layer, "")
    assert source is not None
    if KINDS[kind].batch_statistics and source.is_activation:
        raise _CannotFoldError("it is an activation too, which is no scale and shift")
    if not KINDS[kind].running_statistics:
        raise _CannotFoldError("its statistics depend on the sample")
    mean, var = (getattr(layer, name, None) for name in ("running_mean", "running_var"))
    if not isinstance(mean, Tensor) or not isinstance(var, Tensor):
        raise _CannotFoldError("it has no running statistics")
    mean, var = mean.double(), var.double()
    weight, bias = layer.weight, layer.bias
    scale = torch.rsqrt(var + source.eps) * (weight.detach().double() if isinstance(weight, Tensor) else 1.0)
    return ChannelAffine(scale, (bias.detach().double() if isinstance(bias, Tensor) else 0.0) - mean * scale)


def _described(module: nn.Module | None) -> str:
    if module is None:
        return "no module of its own"
    return f"a {type(module).__name__}" + (" with hooks" if has_forward_hooks(module) else "")


def _kind(layer: nn.Module, path: str) -> str | None:
    """The kind of a normalization, None for any other module."""
    if isinstance(layer, ScalarBias | BoxCox):
        return "fixup" if isinstance(layer, ScalarBias) else "box_cox"
    try:
        source = read_source(layer, path)
    except ValueError as error:
        raise _CannotFoldError(str(error)) from error
    return None if source is None else source.kind
