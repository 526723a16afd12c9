"""Filter response normalization and its activation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from syncnorm.norm.layers.scripting import refuse_scripting
from syncnorm.norm.statistics.moments import compute_dtype, per_channel
from syncnorm.norm.statistics.sample_moments import mean_square


class FilterResponseNorm(nn.Module):
    """Filter response normalization, and the thresholded linear unit (TLU) that belongs to it.

    y = max(x / sqrt(nu2 + |eps|) * weight + bias, tau), with nu2 the mean of x^2 over the positions of each (n, c). No
    mean is subtracted; the learned threshold tau (C,) makes up for it, which is why TLU replaces the activation.
    Without `activation` there is no tau and no max.

    Train and eval are the same. Shape: (N, C, *) -> (N, C, *). With more than one position eps is fixed (default 1e-6).
    With one, nu2 is x^2 and y would be little more than the sign of x: then a learned |eps_l| (C,), 1e-4 at the start,
    is added. It is only there where the input has one position, told by `one_position`.
    affine=False leaves out weight and bias; tau belongs to the activation and stays.
    See: Singh & Krishnan 2019, arXiv:1911.09737, sec. 3.

    >>> layer = norm.FilterResponseNorm(8)
    >>> layer(torch.randn(2, 8, 4, 4)).shape, sorted(name for name, _ in layer.named_parameters())
    (torch.Size([2, 8, 4, 4]), ['bias', 'eps_l', 'tau', 'weight'])
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-6,
        affine: bool = True,
        *,
        activation: bool = True,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features, self.eps, self.affine, self.activation = num_features, eps, affine, activation
        zeros = torch.zeros(num_features, device=device, dtype=dtype)
        self.weight = nn.Parameter(torch.ones_like(zeros)) if affine else None
        self.bias = nn.Parameter(zeros.clone()) if affine else None
        self.tau = nn.Parameter(zeros.clone()) if activation else None
        self.eps_l = nn.Parameter(torch.full_like(zeros, 1e-4))

    __prepare_scriptable__ = refuse_scripting

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(compute_dtype(x))
        nu2, num_positions = mean_square(wide)
        # Times 0 rather than left out: DistributedDataParallel wants a gradient, even of zeros, for every parameter.
        eps = self.eps + per_channel(self.eps_l.abs(), wide) * (1.0 if num_positions == 1 else 0.0)
        y = wide * torch.rsqrt(nu2 + eps)
        if self.weight is not None and self.bias is not None:
            y = y * per_channel(self.weight, wide) + per_channel(self.bias, wide)
        if self.tau is not None:
            y = torch.maximum(y, per_channel(self.tau, wide))
        return y.to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, affine={self.affine}, activation={self.activation}"
