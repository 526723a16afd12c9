"""Checks of a model as a whole: the neighbours of each layer, and the optimizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from syncnorm.norm.auditing.findings import Finding, ObservedLayer
from syncnorm.norm.layers.box_cox import BoxCox
from syncnorm.norm.layers.evo_norm import EvoNormS0
from syncnorm.norm.layers.weight import LINEAR_LAYERS
from syncnorm.norm.reading.activations import node_effect, readers_of
from syncnorm.norm.reading.dataflow import Flow
from syncnorm.norm.reading.elementwise import effect
from syncnorm.norm.torch_compat import tree_leaves

_POOLS = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
_POOL_FUNCTIONS = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d, torch.mean)
# As many convolutions as networks have that the exponent's start of 2 was made for.
FEW_BOX_COX = 6
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


def check_neighbours(observed: ObservedLayer, flow: Flow) -> Iterator[Finding]:
    """Findings about one layer from the data flow."""
    before = flow.before(observed.layer)
    if is_instance_norm(observed) and any(_is_global_pool(node, flow) for node in flow.readers(observed.layer)):
        yield Finding(
            "instance_norm_before_global_pooling",
            observed.path,
            "Instance normalization makes the mean of every channel the bias, and global average pooling takes just "
            "that mean: nothing of the input is left.",
            "Use group, or leave the last normalization out.",
            "error",
        )
    if observed.subtracts_mean and isinstance(before, LINEAR_LAYERS) and before.bias is not None:
        yield Finding(
            "bias_before_norm",
            observed.path,
            f"The bias of the {type(before).__name__} before is subtracted again with the mean.",
            "Build it with bias=False.",
            "info",
            {"parameters": before.get_parameter("bias").numel()},
        )
    is_activating = bool(getattr(observed.layer, "activation", False))
    effect_of = partial(effect, num_features=observed.source.num_features)
    readers = readers_of(flow, observed.layer, effect_of) if is_activating else []
    if any(node_effect(node, flow, effect_of) == "activation" for node in readers):
        yield Finding(
            "activation_twice",
            observed.path,
            f"{observed.source.kind} is an activation, and another one follows.",
            "Give this layer an activation module of its own, so that norm.convert can remove it.",
            "warning",
        )
    if observed.kind.batch_statistics and isinstance(before, _DROPOUTS) and before.p > 0:
        yield Finding(
            "dropout_before_batch_norm",
            observed.path,
            f"Dropout with p = {before.p:g} right before: the variance in training is not that in eval "
            "(Li et al. 2018, arXiv:1801.05134).",
            "Put dropout after the last batch normalization.",
            "warning",
            {"p": before.p},
        )


def check_unnormalized(observed: Sequence[ObservedLayer]) -> Iterator[Finding]:
    """EvoNorm is a normalization by its activation alone, so without one it is a scale and a shift."""
    layers = [item for item in observed if isinstance(item.layer, EvoNormS0)]
    bare = [item for item in layers if not item.layer.activation]
    if bare:
        yield Finding(
            "normalizes_nothing",
            bare[0].path,
            f"{len(bare)} of {len(layers)} evo_s0 layers normalize nothing: they were built without an activation, so "
            "each of them scales and shifts only. Behind the last convolution of a residual branch that is as in the "
            "paper.",
            "Let an activation module of its own follow each other layer before you convert, or use group there.",
            "warning" if len(bare) == len(layers) else "info",
            {"layers": len(bare), "of": len(layers)},
        )


def check_dropout_of_selu(model: nn.Module) -> Iterator[Finding]:
    """SELU with plain dropout loses the mean and variance it keeps."""
    if not any(isinstance(module, nn.SELU) for module in model.modules()):
        return
    for path, module in model.named_modules():
        if type(module) in _DROPOUTS:
            yield Finding(
                "dropout_in_self_normalizing_network",
                path,
                "Plain dropout shifts mean and variance, which SELU relies on.",
                "Use nn.AlphaDropout.",
                "warning",
            )


def check_depth_of_box_cox(model: nn.Module) -> Iterator[Finding]:
    """With an exponent near 2 every layer squares large values: after k layers it is a power of 2^k."""
    steep = [path for path, module in model.named_modules() if isinstance(module, BoxCox) and module.lmbda > 1.5]
    if len(steep) > FEW_BOX_COX:
        yield Finding(
            "box_cox_in_a_deep_network",
            steep[0],
            f"{len(steep)} Box-Cox layers with an exponent near 2 square large activations one after another.",
            "Start with lambda_init=1, which is the identity.",
            "warning",
            {"layers": len(steep)},
        )


def check_output(output: Any) -> Iterator[Finding]:
    """A forward that overflows. -inf is left out: it is how scores are masked."""
    tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    bad = sum(int((tensor.isnan() | tensor.isposinf()).sum()) for tensor in tensors if not tensor.is_meta)
    if bad:
        yield Finding(
            "output_not_finite",
            "",
            f"{bad} values of the output are nan or inf on the example, in eval mode.",
            "Look for weights that are not finite. Where a model multiplies its activations, it overflows without "
            "normalization (none, weight, selu): use a kind with statistics there, such as group.",
            "warning",
            {"values": bad},
        )


def check_weight_decay(observed: Sequence[ObservedLayer], optimizer: torch.optim.Optimizer) -> Iterator[Finding]:
    """Weight decay on scale and shift."""
    decay = {
        parameter: float(group.get("weight_decay", 0.0))
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    for item in observed:
        found = [decay.get(parameter, 0.0) for parameter in item.layer.parameters(recurse=False)]
        if found and max(found) > 0:
            yield Finding(
                "norm_under_weight_decay",
                item.path,
                f"Weight decay {max(found):g} pulls scale and shift of the layer towards 0.",
                "Put the parameters of normalization layers in a group with weight_decay=0.",
                "info",
                {"weight_decay": max(found), "parameters": len(found)},
            )


def is_instance_norm(observed: ObservedLayer) -> bool:
    """Instance normalization, by name or as one channel a group."""
    is_one_channel = getattr(observed.layer, "num_groups", None) == observed.source.num_features
    return observed.source.kind == "instance" or (observed.source.kind == "group" and is_one_channel)


def _is_global_pool(node: fx.Node, flow: Flow) -> bool:
    module = flow.modules.get(node)
    if isinstance(module, _POOLS):
        sizes = module.output_size if isinstance(module.output_size, tuple) else (module.output_size,)
        return all(size == 1 for size in sizes)
    if node.op == "call_function" and node.target in _POOL_FUNCTIONS:
        return True
    return node.op == "call_method" and node.target == "mean"
