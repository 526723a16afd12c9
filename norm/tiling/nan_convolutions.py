"""Convolutions reduced to where they look: which positions of the output depend on one that is not a number."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_PLAIN = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_ARGUMENTS = dict.fromkeys([F.conv1d, F.conv2d, F.conv3d], _PLAIN) | dict.fromkeys(
    [F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d], _TRANSPOSED
)


def spread(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """NaN wherever the kernel of a convolution meets NaN in any channel, and 1 elsewhere; None for other functions.

    It takes one channel in place of all, so a wide network costs little. No fast algorithm of a backend, which computes
    several positions together, can spread NaN beyond what depends on it.
    """
    if function not in _ARGUMENTS:
        return None
    given = dict(zip(_ARGUMENTS[function], args, strict=False)) | kwargs
    x, weight, groups = given.pop("input"), given.pop("weight"), given.pop("groups", 1)
    channels = weight.shape[0] if _ARGUMENTS[function] is _PLAIN else weight.shape[1] * groups
    has_nan = x.isnan().any(1, keepdim=True).float()
    kernel = torch.ones(1, 1, *weight.shape[2:], device=x.device)
    met = function(has_nan, kernel, **{**given, "bias": None}) > 0.5  # counts, which a backend may round
    return torch.where(met, torch.nan, 1.0).to(x.dtype).repeat(1, channels, *[1] * (x.dim() - 2))
