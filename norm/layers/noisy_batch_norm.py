"""Batch normalization followed by noise, an instrument to study why batch normalization helps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from syncnorm.norm.layers.scripting import refuse_scripting
from syncnorm.norm.shapes import check_channels
from syncnorm.norm.torch_compat import BatchNormBase


class NoisyBatchNorm(BatchNormBase):
    """Batch normalization whose output gets a new, random covariate shift at every step.

    y = (batch_norm(x) * s) + m, per sample i and channel j:
    channel: m_j ~ U(-0.5, 0.5), s_j ~ U(1, 1.25), drawn anew at every step, so the distribution is not stationary;
    sample: m_ij ~ U(m_j - 0.1, m_j + 0.1), s_ij = s_j * U(0.9, 1.1). All positions of a channel share them.

    Train: running statistics as in nn.BatchNorm2d. Eval: no noise. The running statistics of the layers behind were
    gathered under noise, so that accuracy in eval collapses; judge by training accuracy, or recompute the population
    statistics, which are taken without noise.

    Shape: (N, C, *) -> (N, C, *). state_dict: the keys of nn.BatchNorm2d. Noise comes from torch's global generator.
    See: Santurkar et al. 2018, arXiv:1805.11604, sec. 2.1 and appendix A; noise per channel there is per activation.

    >>> layer = norm.NoisyBatchNorm(8)
    >>> x = torch.randn(4, 8, 2, 2)
    >>> bool((layer(x) == layer(x)).all()), bool((layer.eval()(x) == layer(x)).all())
    (False, True)
    """

    # Without noise, while population statistics are taken.
    population_mode: ClassVar[Mapping[str, object]] = {"is_noisy": False}

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, True, device, dtype)
        self.is_noisy = True

    __prepare_scriptable__ = refuse_scripting

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if not (self.training and self.is_noisy):
            return y
        shape = (*x.shape[:2], *[1] * (x.dim() - 2))
        channel = (1, *shape[1:])
        shift = _uniform(x, channel, -0.5, 0.5) + _uniform(x, shape, -0.1, 0.1)
        scale = _uniform(x, channel, 1.0, 1.25) * _uniform(x, shape, 0.9, 1.1)
        return y * scale + shift

    def _check_input_dim(self, input: Tensor) -> None:
        check_channels(self, input)


def _uniform(like: Tensor, shape: tuple[int, ...], low: float, high: float) -> Tensor:
    return torch.empty(shape, device=like.device, dtype=like.dtype).uniform_(low, high)
