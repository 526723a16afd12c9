"""Batch normalization of dense CPU tensors by the kernels of kernels.c. Rows are (count, C means, C m2s) in float64."""

from __future__ import annotations

import ctypes
from typing import Any, cast

import torch
from torch import Tensor

from syncnorm.norm.backends import cpu_aten as native
from syncnorm.norm.backends.arguments import is_plain
from syncnorm.norm.backends.interface import Request, Running
from syncnorm.norm.backends.memory_layout import layout_of
from syncnorm.norm.native.build import library

_SUFFIX = {torch.float32: "f32", torch.float64: "f64", torch.bfloat16: "bf16"}


def takes(x: Tensor) -> bool:
    """Whether the kernels know this dtype."""
    return x.dtype in _SUFFIX and library() is not None


def measure(x: Tensor) -> Tensor:
    """The row of this worker's x."""
    N, C, L, by_rows = layout_of(x)
    row = torch.empty(2 * C + 1, dtype=torch.float64, device=x.device)
    kernel_for("measure", x)(x.data_ptr(), N, C, L, by_rows, torch.get_num_threads(), row.data_ptr())
    return row


def finish_forward(x: Tensor, rows_WF: Tensor, request: Request) -> tuple[Tensor, Tensor]:
    """The output and the row of all workers, of which `rows_WF` are the parts; moves the running statistics."""
    N, C, L, by_rows = layout_of(x)
    dtype = affine_dtype(x)
    weight, bias = plain(request.weight, dtype), plain(request.bias, dtype)
    work = torch.empty(6 * C + 1, dtype=torch.float64, device=x.device)  # the merged row, then the table
    y = torch.empty_like(x)
    running = request.running
    addresses = None if running is None else _addresses(running, C)
    kernel_for("finish_forward", x)(
        x.data_ptr(), y.data_ptr(), N, C, L, by_rows, torch.get_num_threads(),
        rows_WF.data_ptr(), rows_WF.shape[0], rows_WF.stride(0), work.data_ptr(), request.eps,
        address(weight), address(bias), dtype == torch.float64,
        *(addresses or _NOTHING_TO_MOVE),
    )  # fmt: skip
    merged = work[: 2 * C + 1]
    if running is not None:
        if addresses is not None:
            # Autograd must see that they changed, as for any operation in place.
            torch.autograd.graph.increment_version(cast("tuple[Tensor, ...]", running[1:]))
        else:
            native.update_running(merged, running)
    return y, merged


def gradient_sums(x: Tensor, dy: Tensor, row: Tensor) -> Tensor:
    """(2C,) of this worker: sums of dy, then of dy * (x - mean)."""
    N, C, L, by_rows = layout_of(x)
    sums = torch.empty(2 * C, dtype=torch.float64, device=x.device)
    sizes = (N, C, L, by_rows, torch.get_num_threads())
    kernel_for("gradient_sums", x)(x.data_ptr(), dy.data_ptr(), *sizes, row.data_ptr() + 8, sums.data_ptr())
    return sums


def finish_backward(
    x: Tensor, dy: Tensor, row: Tensor, local: Tensor, rows_WF: Tensor, eps: float, weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias; `local` are this worker's `gradient_sums`, `rows_WF` everybody's."""
    N, C, L, by_rows = layout_of(x)
    dtype = affine_dtype(x)
    weight = plain(weight, dtype)
    work = torch.empty(6 * C, dtype=torch.float64, device=x.device)  # the sums of all workers, then the table
    by_weight, by_bias = (torch.empty(C, dtype=dtype, device=x.device) for _ in range(2))
    dx = torch.empty_like(x)
    kernel_for("finish_backward", x)(
        x.data_ptr(), dy.data_ptr(), dx.data_ptr(), N, C, L, by_rows, torch.get_num_threads(), row.data_ptr(),
        local.data_ptr(), rows_WF.data_ptr(), rows_WF.shape[0], rows_WF.stride(0), work.data_ptr(), eps,
        address(weight), dtype == torch.float64, by_weight.data_ptr(), by_bias.data_ptr(),
    )  # fmt: skip
    return dx, by_weight, by_bias


_NOTHING_TO_MOVE = (0.0, None, None, False, None, None)


def _addresses(running: Running, num_channels: int) -> tuple[float, int, int, bool, int, int] | None:
    """Where the kernel writes; None unless it may write to all of them. Then PyTorch's operators do."""
    momentum, mean, var, num_batches, num_non_finite = running
    if not (
        is_plain(mean, torch.float32, torch.float64, size=num_channels)
        and is_plain(var, mean.dtype, size=num_channels)
        and is_plain(num_batches, torch.int64, size=1)
        and is_plain(num_non_finite, torch.int64, size=1)
        and num_batches.device == num_non_finite.device == mean.device
    ):
        return None
    step = -1.0 if momentum is None else momentum
    is_double = mean.dtype == torch.float64
    return step, mean.data_ptr(), var.data_ptr(), is_double, num_batches.data_ptr(), num_non_finite.data_ptr()


def kernel_for(name: str, x: Tensor) -> Any:
    """The kernel of that name for the dtype of x."""
    lib = library()
    assert isinstance(lib, ctypes.CDLL)  # takes() said so
    return getattr(lib, f"{name}_{_SUFFIX[x.dtype]}")


def affine_dtype(x: Tensor) -> torch.dtype:
    """Of the weight and bias that the kernels read with x."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def plain(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """As the kernels read it."""
    if tensor is None or is_plain(tensor, dtype, size=tensor.numel()):
        return tensor
    return tensor.detach().to(dtype).resolve_neg().contiguous()


def address(tensor: Tensor | None) -> int | None:
    """Where its numbers start; none is a null pointer."""
    return None if tensor is None else tensor.data_ptr()
