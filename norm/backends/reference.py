"""Batch normalization as a composition that autograd, torch.compile and torch.func can trace."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from syncnorm.norm.backends.cpu_aten import update_running
from syncnorm.norm.backends.interface import Request
from syncnorm.norm.statistics.moments import Exchanged, Moments, compute_dtype, exchange, per_channel
from syncnorm.norm.statistics.transforms import move_outside_transforms


def batch_norm(x: Tensor, request: Request) -> tuple[Tensor, Exchanged]:
    """See interface.BatchNorm."""
    moments, exchanged = exchange(x, None, request.group, request.layer, request.known)
    if request.running is not None:
        move = partial(update_running, running=request.running)
        move_outside_transforms(move, exchanged.merged, request.running[1:])
    return normalize(x, moments, request.eps, request.weight, request.bias), exchanged


def normalize(x: Tensor, moments: Moments, eps: float, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias per channel, in float32 or wider, in the dtype of x again."""
    scale = torch.rsqrt(moments.biased_variance + eps)
    if weight is not None:
        scale = scale * weight
    y = (x.to(compute_dtype(x)) - per_channel(moments.mean, x)) * per_channel(scale, x)
    if bias is not None:
        y = y + per_channel(bias, x)
    return y.to(x.dtype)
