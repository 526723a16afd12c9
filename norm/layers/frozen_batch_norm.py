"""Batch normalization with fixed statistics and fixed scale and shift."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from syncnorm.norm.layers.scripting import refuse_scripting
from syncnorm.norm.memory.constant_scale import normalize


class FrozenBatchNorm(nn.Module):
    """Batch normalization with fixed statistics and affine: a fixed scale and shift per channel.

    y = (x - running_mean) / sqrt(running_var + eps) * weight + bias. Train and eval are the same; nothing is learned or
    updated. The gradient goes through x alone, and keeps no activation for backward. Convert from trained layers, or
    load a state_dict: as built it does nothing but divide by sqrt(1 + eps).

    Shape: (N, C, *) -> (N, C, *). state_dict: the keys of nn.BatchNorm2d, all of them buffers. One without
    num_batches_tracked loads, too, as frozen layers of torchvision, Detectron2 and Hugging Face have it.
    See: He et al. 2017 (Mask R-CNN), arXiv:1703.06870, which fine-tunes with batch normalization frozen.

    >>> layer = norm.FrozenBatchNorm(8)
    >>> layer.load_state_dict(nn.BatchNorm2d(8).state_dict())
    <All keys matched successfully>
    >>> list(layer.parameters())
    []
    """

    is_frozen = True
    """Its statistics never change; see statistics/freezing.py."""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features, self.eps, self.affine = num_features, eps, affine
        ones = torch.ones(num_features, device=device, dtype=dtype)
        self.weight: Tensor | None
        self.bias: Tensor | None
        self.register_buffer("weight", ones.clone() if affine else None)
        self.register_buffer("bias", torch.zeros_like(ones) if affine else None)
        self.register_buffer("running_mean", torch.zeros_like(ones))
        self.register_buffer("running_var", ones)
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.long, device=device))

    __prepare_scriptable__ = refuse_scripting

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.get_buffer("running_mean"), self.get_buffer("running_var")
        return normalize(x, mean, var, self.weight, self.bias, self.eps)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """As every module, but the counter may be missing: it changes no output."""
        counter = self.get_buffer("num_batches_tracked")
        has_value = counter.device.type != "meta"
        state_dict.setdefault(f"{prefix}num_batches_tracked", counter if has_value else torch.tensor(0))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, affine={self.affine}"
