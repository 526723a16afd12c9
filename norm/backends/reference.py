"""Batch normalization as a composition that autograd, torch.compile and torch.func can look into."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from norm.moments import Exchanged, Moments, compute_dtype, exchange, per_channel


def batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    group: dist.ProcessGroup | None,
    layer: nn.Module | None,
    known: Exchanged | None,
) -> tuple[Tensor, Exchanged]:
    """The output and what was exchanged for it; `known` is that of an earlier call for the same x."""
    moments, exchanged = exchange(x, None, group, layer, known)
    return normalize(x, moments, eps, weight, bias), exchanged


def normalize(x: Tensor, moments: Moments, eps: float, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias per channel, in float32 or wider, in the dtype of x again."""
    scale = torch.rsqrt(moments.biased_variance + eps)
    if weight is not None:
        scale = scale * weight
    y = (x.to(compute_dtype(x)) - per_channel(moments.mean, x)) * per_channel(scale, x)
    if bias is not None:
        y = y + per_channel(bias, x)
    return y.to(x.dtype)
