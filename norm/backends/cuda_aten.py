"""Batch normalization of dense tensors on a GPU by PyTorch's own operators, where Triton is missing.

The operators of torch.nn.SyncBatchNorm, which take and return statistics in float32 or wider, between rows as in
cuda_triton.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from syncnorm.norm.backends.cpu_aten import merged_exactly, update_running
from syncnorm.norm.backends.interface import Request
from syncnorm.norm.statistics.moments import Moments, as_row, compute_dtype, of_row
from syncnorm.norm.statistics.moments import measure as measure_exactly

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def takes(x: Tensor) -> bool:
    """Whether PyTorch's operators know this dtype."""
    return x.dtype in _DTYPES


def measure(x: Tensor) -> Tensor:
    """The row of this worker's x."""
    if x.numel() == 0:
        return as_row(measure_exactly(x))
    num_values = x.numel() // x.shape[1]
    mean, invstd = torch.batch_norm_stats(x, 0.0)
    count = torch.full((), num_values, dtype=torch.float64, device=x.device)
    return as_row(Moments(count, mean.double(), invstd.double().pow(-2) * num_values))


def finish_forward(x: Tensor, rows_WF: Tensor, request: Request) -> tuple[Tensor, Tensor]:
    """The output and the row of all workers, of which `rows_WF` are the parts; moves the running statistics."""
    row = as_row(merged_exactly(rows_WF))
    weight, bias = (t if t is None else t.detach() for t in (request.weight, request.bias))
    y = torch.empty_like(x)
    if x.numel():
        torch.batch_norm_elemt(x, weight, bias, *_mean_and_invstd(x, row, request.eps), request.eps, out=y)
    if request.running is not None:
        update_running(row, request.running)
    return y, row


def gradient_sums(x: Tensor, dy: Tensor, row: Tensor) -> Tensor:
    """(2C,) of this worker: sums of dy, then of dy * (x - mean)."""
    if x.numel() == 0:
        return row.new_zeros(2 * x.shape[1])
    mean, invstd = _mean_and_invstd(x, row, 1.0)
    of_dy, of_products, _, _ = torch.batch_norm_backward_reduce(dy, x, mean, invstd, None, True, False, False)
    return torch.cat([of_dy.double(), of_products.double()])


def finish_backward(
    x: Tensor, dy: Tensor, row: Tensor, local: Tensor, rows_WF: Tensor, eps: float, weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias; `local` are this worker's `gradient_sums`, `rows_WF` everybody's."""
    C = x.shape[1]
    mean, invstd = _mean_and_invstd(x, row, eps)
    of_dy, of_products = torch.split(rows_WF.sum(0).to(mean.dtype), C)
    weight = None if weight is None else weight.detach()
    count = row[:1].to(torch.int32)
    dx = torch.empty_like(x)
    if x.numel():
        dx = torch.batch_norm_backward_elemt(dy, x, mean, invstd, weight, of_dy, of_products, count)
    return dx, local[C:] * invstd, local[:C]


def _mean_and_invstd(x: Tensor, row: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    moments = of_row(row)
    dtype = compute_dtype(x)
    return moments.mean.to(dtype), torch.rsqrt(moments.biased_variance + eps).to(dtype)
