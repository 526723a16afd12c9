"""Batch normalization of dense CPU tensors by the kernels of kernels.c. Rows are (count, C means, C m2s) in float64."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from norm.backends.dense import layout_of, like
from norm.backends.kernels import library

_SUFFIX = {torch.float32: "f32", torch.float64: "f64", torch.bfloat16: "bf16"}


def takes(x: Tensor) -> bool:
    """Whether the kernels know this dtype."""
    return x.dtype in _SUFFIX and library() is not None


def measure(x: Tensor) -> Tensor:
    """The row of this worker's x."""
    N, C, L, by_rows = layout_of(x)
    row = torch.empty(2 * C + 1, dtype=torch.float64)
    _kernel("measure", x)(x.data_ptr(), N, C, L, by_rows, torch.get_num_threads(), row.data_ptr())
    return row


def merge(rows_WF: Tensor) -> Tensor:
    """The row of all workers."""
    W, F = rows_WF.shape
    row = torch.empty(F, dtype=torch.float64)
    _lib().merge_rows(rows_WF.data_ptr(), W, rows_WF.stride(0), F // 2, row.data_ptr())
    return row


def add(rows_WF: Tensor) -> Tensor:
    """The sum of all workers' rows, in rank order."""
    W, F = rows_WF.shape
    row = torch.empty(F, dtype=torch.float64)
    _lib().sum_rows(rows_WF.data_ptr(), W, rows_WF.stride(0), F, row.data_ptr())
    return row


def normalize(x: Tensor, row: Tensor, eps: float, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias."""
    N, C, L, by_rows = layout_of(x)
    weight, bias, is_double = _affine(x, weight, bias)
    table = torch.empty(4 * C, dtype=torch.float64)
    _lib().output_table(row.data_ptr(), C, eps, _address(weight), _address(bias), is_double, table.data_ptr())
    y = torch.empty_like(x)
    sizes = (N, C, L, by_rows, torch.get_num_threads())
    _kernel("normalize", x)(x.data_ptr(), y.data_ptr(), *sizes, table.data_ptr())
    return y


def gradient_sums(x: Tensor, dy: Tensor, row: Tensor) -> Tensor:
    """(2C,) of this worker: sums of dy, then of dy * (x - mean)."""
    N, C, L, by_rows = layout_of(x)
    sums = torch.empty(2 * C, dtype=torch.float64)
    sizes = (N, C, L, by_rows, torch.get_num_threads())
    means = row.data_ptr() + 8
    _kernel("gradient_sums", x)(x.data_ptr(), like(dy, x).data_ptr(), *sizes, means, sums.data_ptr())
    return sums


def gradients(
    x: Tensor, dy: Tensor, row: Tensor, eps: float, local: Tensor, total: Tensor, weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias; `local` and `total` are this worker's and the group's `gradient_sums`."""
    N, C, L, by_rows = layout_of(x)
    weight, _, is_double = _affine(x, weight, None)
    table = torch.empty(4 * C, dtype=torch.float64)
    affine = torch.empty(2, C, dtype=torch.float64 if is_double else torch.float32)
    step = affine.element_size() * C
    _lib().gradient_table(
        row.data_ptr(), C, eps, local.data_ptr(), total.data_ptr(), _address(weight), is_double, table.data_ptr(),
        affine.data_ptr(), affine.data_ptr() + step,
    )  # fmt: skip
    dx = torch.empty_like(x)
    sizes = (N, C, L, by_rows, torch.get_num_threads())
    _kernel("input_gradient", x)(x.data_ptr(), like(dy, x).data_ptr(), dx.data_ptr(), *sizes, table.data_ptr())
    return dx, affine[0], affine[1]


def update_running(
    row: Tensor, momentum: float | None, mean: Tensor, var: Tensor, batches: Tensor, bad: Tensor
) -> None:
    """Moves the running mean and (Bessel-corrected) variance in place, unless the row is empty or not finite."""
    is_double = mean.dtype == torch.float64
    step = -1.0 if momentum is None else momentum
    addresses = (mean.data_ptr(), var.data_ptr(), is_double, batches.data_ptr(), bad.data_ptr())
    _lib().update_running(row.data_ptr(), mean.numel(), step, *addresses)
    # Autograd must see that they changed, as for any operation in place.
    for buffer in (mean, var, batches, bad):
        torch.autograd.graph.increment_version(buffer)


def _lib() -> ctypes.CDLL:
    lib = library()
    assert lib is not None  # takes() said so
    return lib


def _kernel(name: str, x: Tensor) -> Any:
    return getattr(_lib(), f"{name}_{_SUFFIX[x.dtype]}")


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor | None, Tensor | None, bool]:
    """Both in one dtype that the kernels read, and whether that is float64."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    weight, bias = (t if t is None else t.detach().to(dtype).contiguous() for t in (weight, bias))
    return weight, bias, dtype == torch.float64


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
