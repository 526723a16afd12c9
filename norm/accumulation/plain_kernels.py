"""The kernels of a joint batch normalization by plain operators, for tensors that the compiled ones do not take."""

from __future__ import annotations

import torch
from torch import Tensor

from syncnorm.norm.backends import reference
from syncnorm.norm.backends.interface import Request
from syncnorm.norm.statistics.moments import compute_dtype, measure_row, of_row, per_channel

measure = measure_row


def finish_forward(x: Tensor, rows_WF: Tensor, request: Request) -> tuple[Tensor, Tensor]:
    """The output of x normalized by the one row there is."""
    (row,) = rows_WF
    return reference.normalize(x, of_row(row), request.eps, request.weight, request.bias), row


def gradient_sums(x: Tensor, dy: Tensor, row: Tensor) -> Tensor:
    """(2C,): sums of dy, then of dy * (x - mean)."""
    wide = dy.to(compute_dtype(x))
    products = wide * (x.to(wide.dtype) - per_channel(of_row(row).mean, x))
    dims = [0, *range(2, x.dim())]
    return torch.cat([wide.sum(dims), products.sum(dims)]).double()


def finish_backward(
    x: Tensor, dy: Tensor, row: Tensor, local: Tensor, rows_WF: Tensor, eps: float, weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias; `local` are the `gradient_sums` of x, `rows_WF` those of all parts."""
    moments, C = of_row(row), x.shape[1]
    invstd = torch.rsqrt(moments.biased_variance + eps)
    scale = invstd if weight is None else invstd * weight.double()
    constant, slope = torch.split(rows_WF.sum(0) / moments.count.clamp_min(1), C)
    wide = dy.to(compute_dtype(x))
    centered = x.to(wide.dtype) - per_channel(moments.mean, x)
    inner = wide - per_channel(constant, x) - per_channel(slope * invstd.square(), x) * centered
    dx = (per_channel(scale, x) * inner).to(x.dtype)
    return dx, local[C:] * invstd, local[:C]
