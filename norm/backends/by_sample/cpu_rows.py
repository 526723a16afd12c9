"""Group normalization of channels_last CPU tensors by the kernels of sample_kernels.c.

Statistics are (N, 2, G) in float64: the means and inverse standard deviations of each sample's groups.
"""

from __future__ import annotations

import torch
from torch import Tensor

from syncnorm.norm.backends.cpu_compiled import address, affine_dtype, kernel_for, plain, takes
from syncnorm.norm.backends.memory_layout import layout_of

__all__ = ["backward", "forward", "takes"]

_SMALL = 32768  # elements that one thread normalizes in the time that others take to start


def forward(
    x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """The output and the statistics."""
    N, C, L, _ = layout_of(x)
    dtype = affine_dtype(x)
    weight, bias = plain(weight, dtype), plain(bias, dtype)
    y = torch.empty_like(x)
    statistics = torch.empty(N, 2, num_groups, dtype=torch.float64, device=x.device)
    kernel_for("group_forward", x)(
        x.data_ptr(), y.data_ptr(), N, C, L, num_groups, _threads(x), eps,
        address(weight), address(bias), dtype == torch.float64, statistics.data_ptr(),
    )  # fmt: skip
    return y, statistics


def backward(x: Tensor, dy: Tensor, statistics: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias. dy: in the memory format of x."""
    N, C, L, _ = layout_of(x)
    dtype = affine_dtype(x)
    weight = plain(weight, dtype)
    dx = torch.empty_like(x)
    by_weight, by_bias = (torch.empty(C, dtype=dtype, device=x.device) for _ in range(2))
    kernel_for("group_backward", x)(
        x.data_ptr(), dy.data_ptr(), dx.data_ptr(), N, C, L, statistics.shape[2], _threads(x), statistics.data_ptr(),
        address(weight), dtype == torch.float64, by_weight.data_ptr(), by_bias.data_ptr(),
    )  # fmt: skip
    return dx, by_weight, by_bias


def _threads(x: Tensor) -> int:
    return torch.get_num_threads() if x.numel() > _SMALL else 1
