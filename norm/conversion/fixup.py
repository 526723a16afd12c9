"""Residual networks that train without normalization, by initialisation and a few scalars."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from syncnorm.norm.conversion.edits import Step
from syncnorm.norm.layers.weight import LINEAR_LAYERS, copied
from syncnorm.norm.paths import errors_named, modules_with_paths

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class ResidualBranch:
    """A residual block: the convolutions of its branch in order, and the module on its shortcut, if any.

    >>> convs = (nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1))
    >>> len(norm.ResidualBranch(convs, shortcut=None).convs)
    2
    """

    convs: tuple[nn.Module, ...]
    shortcut: nn.Module | None


class FixupLayer(nn.Module):
    """A convolution or linear layer with Fixup's scalars around it: layer(x + bias_in) * scale + bias_out.

    The biases start at 0, the scale at 1; what a place does not need is None.
    See: Zhang et al. 2019, arXiv:1901.09321, sec. 3.
    """

    def __init__(self, layer: nn.Module, bias_in: nn.Parameter, *, has_scale: bool, has_bias_out: bool) -> None:
        super().__init__()
        self.layer = layer
        self.bias_in = bias_in
        self.scale = nn.Parameter(torch.ones_like(bias_in)) if has_scale else None
        self.bias_out = nn.Parameter(torch.zeros_like(bias_in)) if has_bias_out else None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x + self.bias_in)
        if self.scale is not None:
            y = y * self.scale
        return y if self.bias_out is None else y + self.bias_out


class ScalarBias(nn.Module):
    """x + shift with one learned number, 0 at the start: Fixup's bias before an activation."""

    def __init__(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(1, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shift


_READERS: dict[type[nn.Module], Callable[[Any], ResidualBranch]] = {}


def register_residual_block(block_class: type[M], read: Callable[[M], ResidualBranch]) -> None:
    """Tell the Fixup conversion how blocks of `block_class` are built.

    >>> class Block(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))
    ...     def forward(self, x):
    ...         return x + self.body(x)
    >>> norm.register_residual_block(Block, lambda block: norm.ResidualBranch((block.body[0],), shortcut=None))
    >>> type(norm.convert(nn.Sequential(Block(), nn.Linear(4, 2)), "fixup")[0][0].body[0]).__name__
    'FixupLayer'
    """
    _READERS[block_class] = read


def residual_branch(block: nn.Module) -> ResidualBranch | None:
    """The branch of a residual block: one that was described, or one with torchvision's attribute names.

    Those are conv1, bn1, conv2, bn2, perhaps conv3, bn3, and downsample, which may be None.
    """
    if read := _READERS.get(type(block)):
        return read(block)
    children = dict(block.named_children())
    convs = [children[name] for name in ("conv1", "conv2", "conv3") if name in children]
    has_norms = all(f"bn{number}" in children for number in range(1, len(convs) + 1))
    if len(convs) < 2 or not has_norms or not hasattr(block, "downsample"):
        return None
    return ResidualBranch(tuple(convs), children.get("downsample"))


def fixup_steps(model: nn.Module, *, with_scalars: bool) -> Iterator[Step]:
    """The exchanges beside the normalization layers that make a residual network a Fixup network.

    With L residual blocks and m convolutions in a branch: the last convolution of each branch and the classifier (the
    last linear layer) are 0; the others of the branch are drawn from N(0, 2 / (k^2 C_out)) and scaled by
    L^(-1 / (2m - 2)); convolutions on a shortcut from N(0, 2 / (k^2 C_out)). The stem stays as it is.
    Scalars: a bias before each convolution of a branch and before each activation, a multiplier behind the last one, a
    bias before the classifier. A convolution on the shortcut shares the first bias of its branch. The authors give
    them a tenth of the learning rate: see `scalars`.

    Raises: ValueError if the model has no residual block of known shape.
    See: Zhang et al. 2019, arXiv:1901.09321, sec. 3, and the authors' code for the scaled initialisation.
    """
    branches = [branch for module in model.modules() if (branch := residual_branch(module)) is not None]
    if not branches:
        raise ValueError(
            "fixup needs residual blocks, but none was found: a block has conv1, bn1, conv2, bn2 (conv3, bn3) and "
            "downsample. Describe other blocks with norm.register_residual_block."
        )
    paths = dict(modules_with_paths(model))
    for branch in branches:
        for old, new in _branch_layers(branch, len(branches), with_scalars):
            yield Step(paths[old], old, new, "weights initialised again")
    if linear := [module for module in model.modules() if isinstance(module, nn.Linear)]:
        classifier = _initialized(linear[-1], 0.0)
        new = FixupLayer(classifier, _scalar(classifier), has_scale=False, has_bias_out=False)
        yield Step(paths[linear[-1]], linear[-1], new if with_scalars else classifier, "weights 0")


def scalars(model: nn.Module) -> list[nn.Parameter]:
    """Fixup's scalar biases and multipliers, for an optimizer group with a tenth of the learning rate."""
    kinds = (FixupLayer, ScalarBias)
    found = (p for module in model.modules() if isinstance(module, kinds) for p in module.parameters(recurse=False))
    return list(dict.fromkeys(found))


def _branch_layers(
    branch: ResidualBranch, num_blocks: int, with_scalars: bool
) -> Iterator[tuple[nn.Module, nn.Module]]:
    depth = len(branch.convs)
    factor = num_blocks ** (-1 / (2 * depth - 2)) if depth > 1 else 1.0
    first_bias = _scalar(branch.convs[0])
    for index, conv in enumerate(branch.convs):
        is_last = index == depth - 1
        new = _initialized(conv, 0.0 if is_last else factor)
        bias = first_bias if index == 0 else _scalar(conv)
        yield conv, FixupLayer(new, bias, has_scale=is_last, has_bias_out=True) if with_scalars else new
    for conv in branch.shortcut.modules() if branch.shortcut is not None else ():
        if isinstance(conv, LINEAR_LAYERS):
            new = _initialized(conv, 1.0)
            yield conv, FixupLayer(new, first_bias, has_scale=False, has_bias_out=False) if with_scalars else new


def _initialized(layer: nn.Module, factor: float) -> nn.Module:
    """A copy of `layer` with weights from N(0, 2 / (k^2 C_out)) times `factor`, and biases 0."""
    with errors_named("fixup draws the weights of residual blocks anew"):
        new = copied(layer, with_bias=False)
    weight = new.get_parameter("weight")
    with torch.no_grad():
        weight.normal_(0, math.sqrt(2 / (weight.shape[0] * math.prod(weight.shape[2:])))).mul_(factor)
        if new.bias is not None:
            new.get_parameter("bias").zero_()
    return new


def _scalar(like: nn.Module) -> nn.Parameter:
    return nn.Parameter(like.get_parameter("weight").new_zeros(1))
