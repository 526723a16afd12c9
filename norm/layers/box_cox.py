"""A power transform with a learned exponent instead of normalization."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from syncnorm.norm.layers.scripting import refuse_scripting
from syncnorm.norm.statistics.moments import compute_dtype

# Below this |z|, expm1(z)/z is summed as a series: 9 terms are exact to float64, and its derivative does not cancel.
_SERIES_BELOW = 0.1
_SERIES_TERMS = 9


class BoxCox(nn.Module):
    """Box-Cox transform of x + 1 with one learned exponent `lmbda` a layer, over the whole line.

    y = ((x + 1)^lmbda - 1) / lmbda for x >= 0, log(x + 1) at lmbda = 0, and its mirror image with 2 - lmbda for x < 0:
    y = -((1 - x)^(2 - lmbda) - 1) / (2 - lmbda). Made for behind a ReLU, where x >= 0. It keeps the sign of x, so in
    front of a ReLU it gives the same; for the negative numbers of a residual branch it is the transform of Yeo and
    Johnson.

    Train and eval are the same; there are no statistics and no scale and shift. Shape: any, kept. The gradient of lmbda
    is the sum over all values. Evaluated as u * expm1(lmbda * u) / (lmbda * u) with u = log1p(|x|), in float32 or
    wider, with a series near 0: value and derivatives are right through lmbda = 0 and 2.
    See: Box & Cox 1964, J. R. Stat. Soc. B 26(2); Yeo & Johnson 2000, Biometrika 87(4).

    >>> norm.BoxCox(lambda_init=2.0)(torch.tensor([0.0, 1.0, 2.0]))
    tensor([0.0000, 1.5000, 4.0000], grad_fn=<WhereBackward0>)
    """

    def __init__(
        self, lambda_init: float = 2.0, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.lmbda = nn.Parameter(torch.tensor(lambda_init, device=device, dtype=dtype or torch.get_default_dtype()))

    __prepare_scriptable__ = refuse_scripting

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(compute_dtype(x))
        lmbda = self.lmbda.to(wide.dtype)
        is_negative = wide < 0
        exponent = torch.where(is_negative, 2 - lmbda, lmbda)
        u = torch.log1p(torch.where(is_negative, -wide, wide))  # no abs: its gradient is 0 at 0
        y = u * _expm1_ratio(exponent * u)
        return torch.where(is_negative, -y, y).to(x.dtype)

    def extra_repr(self) -> str:
        return f"lmbda={self.lmbda.item():.4g}"


def _expm1_ratio(z: Tensor) -> Tensor:
    """expm1(z) / z, 1 at 0, to full precision in value and derivatives."""
    is_small = z.abs() < _SERIES_BELOW
    small, large = torch.where(is_small, z, 0), torch.where(is_small, 1, z)
    series = torch.ones_like(z)
    for n in range(_SERIES_TERMS, 1, -1):
        series = 1 + small / n * series
    return torch.where(is_small, series, torch.expm1(large) / large)
