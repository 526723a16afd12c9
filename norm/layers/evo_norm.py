"""EvoNorm-S0: normalization and activation found together."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from syncnorm.norm.layers.instance_norm import channel_groups
from syncnorm.norm.layers.scripting import refuse_scripting
from syncnorm.norm.statistics.moments import compute_dtype, per_channel
from syncnorm.norm.statistics.sample_moments import group_variance


class EvoNormS0(nn.Module):
    """EvoNorm-S0: a sigmoid-weighted unit over the standard deviation of its group of channels.

    y = x * sigmoid(v * x) / sqrt(var + eps) * weight + bias, with var the biased variance over the channels of a group
    and all positions, per sample, and v (C,) learned, 1 at the start. It is the activation too: no ReLU behind it.
    Without `activation`, where none follows, it is x * weight + bias, as in the authors' residual networks.

    Train and eval are the same. Shape: (N, C, *) -> (N, C, *). On (N, C) a group needs two channels.
    affine=False leaves out weight and bias; v belongs to the activation and stays.
    See: Liu et al. 2020, arXiv:2004.02967.

    >>> norm.EvoNormS0(8, num_groups=4)(torch.randn(2, 8, 4, 4)).shape
    torch.Size([2, 8, 4, 4])
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        num_groups: int | str = "auto",
        activation: bool = True,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features, self.eps, self.affine, self.activation = num_features, eps, affine, activation
        self.num_groups = channel_groups(num_features, num_groups)
        ones = torch.ones(num_features, device=device, dtype=dtype)
        self.weight = nn.Parameter(ones.clone()) if affine else None
        self.bias = nn.Parameter(torch.zeros_like(ones)) if affine else None
        self.v = nn.Parameter(ones) if activation else None

    __prepare_scriptable__ = refuse_scripting

    def forward(self, x: Tensor) -> Tensor:
        y = wide = x.to(compute_dtype(x))
        if self.v is not None:
            var = group_variance(wide, self.num_groups)
            gated = wide * torch.sigmoid(per_channel(self.v, wide) * wide)
            invstd = torch.rsqrt(var + self.eps).expand(-1, -1, x.shape[1] // self.num_groups)
            y = gated * invstd.reshape(*x.shape[:2], *[1] * (x.dim() - 2))  # keeps the memory format of x
        if self.weight is not None and self.bias is not None:
            y = y * per_channel(self.weight, wide) + per_channel(self.bias, wide)
        return y.to(x.dtype)

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, num_groups={self.num_groups}, eps={self.eps}, affine={self.affine}, "
            f"activation={self.activation}"
        )
