"""The arithmetic of folding: a scale and shift per channel, absorbed by the linear map before or after it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from syncnorm.norm.layers.weight import CONVOLUTIONS, TRANSPOSED, out_channels
from syncnorm.norm.torch_compat import has_forward_hooks


@dataclass(frozen=True)
class ChannelAffine:
    """What a layer does in eval mode, channel by channel: x * scale + shift. (C,) float64."""

    scale: Tensor
    shift: Tensor


def takes_behind(module: nn.Module, affine: ChannelAffine) -> bool:
    """Whether `affine` behind `module` can be absorbed by it: it is linear, with as many output channels."""
    return _is_plain_linear(module) and out_channels(module) == affine.scale.numel()


def takes_in_front(module: nn.Module, affine: ChannelAffine) -> bool:
    """Whether `affine` in front of `module` can be absorbed by it exactly: nothing but input reaches its sums."""
    if not _is_plain_linear(module) or isinstance(module, TRANSPOSED):
        return False
    return in_channels(module) == affine.scale.numel() and not pads_with_zeros(module)


def absorb_behind(module: nn.Module, affine: ChannelAffine) -> None:
    """W' = W * scale per output channel, b' = b * scale + shift."""
    weight = module.get_parameter("weight").detach().double()
    if isinstance(module, TRANSPOSED):  # weight: (C_in, C_out / groups, *)
        by_group = _by_group(weight, module.groups)
        new = (by_group * _shaped(affine.scale.view(module.groups, 1, -1), by_group)).flatten(0, 1)
    else:
        new = weight * _shaped(affine.scale, weight)
    _store(module, new, _bias(module) * affine.scale + affine.shift)


def absorb_in_front(module: nn.Module, affine: ChannelAffine) -> None:
    """W' = W * scale per input channel, b' = b + sum over input channels and kernel of W * shift."""
    weight = module.get_parameter("weight").detach().double()
    groups = module.groups if isinstance(module, CONVOLUTIONS) else 1
    by_group = _by_group(weight, groups)  # (groups, C_out / groups, C_in / groups, *)
    scale, shift = (_shaped(values.view(groups, 1, -1), by_group) for values in (affine.scale, affine.shift))
    added = (by_group * shift).flatten(2).sum(2).flatten()
    _store(module, (by_group * scale).flatten(0, 1), _bias(module) + added)


def in_channels(module: nn.Module) -> int:
    size = module.in_features if isinstance(module, nn.Linear) else module.in_channels
    assert isinstance(size, int)
    return size


def pads_with_zeros(module: nn.Module) -> bool:
    if not isinstance(module, CONVOLUTIONS) or module.padding_mode != "zeros":
        return False
    return module.padding != "valid" if isinstance(module.padding, str) else any(module.padding)


def _is_plain_linear(module: nn.Module) -> bool:
    is_linear = type(module) in (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)
    return is_linear and not is_parametrized(module) and not has_forward_hooks(module)


def _store(module: nn.Module, weight: Tensor, bias: Tensor) -> None:
    old = module.get_parameter("weight")
    module.weight = nn.Parameter(weight.to(old.dtype), requires_grad=old.requires_grad)
    module.bias = nn.Parameter(bias.to(old.dtype), requires_grad=old.requires_grad)


def _bias(module: nn.Module) -> Tensor:
    if module.bias is not None:
        return module.get_parameter("bias").detach().double()
    return module.get_parameter("weight").new_zeros(out_channels(module), dtype=torch.float64)


def _by_group(weight: Tensor, groups: int) -> Tensor:
    return weight.view(groups, -1, *weight.shape[1:])


def _shaped(values: Tensor, like: Tensor) -> Tensor:
    """`values` with singleton dimensions appended, to multiply `like` from its first dimension on."""
    return values.view(*values.shape, *[1] * (like.dim() - values.dim()))
