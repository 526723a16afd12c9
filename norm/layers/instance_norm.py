"""Statistics within one sample: how channels are grouped, group and instance normalization."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from syncnorm.norm.backends.by_sample.group_norm import group_norm
from syncnorm.norm.layers.scripting import refuse_scripting


def channel_groups(num_channels: int, num_groups: int | str = "auto") -> int:
    """The number of groups: `num_groups` itself, or for "auto" the largest divisor up to 32 with two channels a group.

    The paper's networks have 32 groups of 2 to 64 channels. One channel a group would be instance normalization,
    which erases all there is before global pooling; so "auto" takes one group rather than that.

    Raises: ValueError if `num_groups` does not divide the channels.
    See: Wu & He 2018, arXiv:1803.08494.
    """
    divisors = [d for d in range(1, num_channels + 1) if num_channels % d == 0]
    if num_groups == "auto":
        return max(d for d in divisors if d == 1 or (d <= 32 and num_channels // d >= 2))
    if num_groups not in divisors:
        raise ValueError(
            f"num_groups must divide the channels: {num_groups} does not divide {num_channels}. "
            f'Use one of {divisors}, or "auto".'
        )
    return int(num_groups)


class GroupNorm(nn.GroupNorm):
    """nn.GroupNorm, as fast on channels_last inputs as on contiguous ones. With one group it is the kind `layer`.

    y = (x - mean) / sqrt(var + eps) * weight + bias, with mean and biased var over the C / num_groups channels of a
    group and all positions, per sample.

    Train and eval are the same. Shape: (N, C, *) -> (N, C, *), dtype and memory format kept. A channels_last input of
    float32, float64 or bfloat16 goes to kernels of ours, which sum in float32 or wider; any other to F.group_norm, with
    its bits. state_dict, repr and arguments: those of nn.GroupNorm, which torch.jit.script gets in its place.
    See: Wu & He 2018, arXiv:1803.08494.

    >>> x = torch.randn(2, 8, 4, 4).to(memory_format=torch.channels_last)
    >>> norm.GroupNorm(4, 8)(x).is_contiguous(memory_format=torch.channels_last)
    True
    """

    def forward(self, input: Tensor) -> Tensor:
        return group_norm(input, self.num_groups, self.weight, self.bias, self.eps)

    def __prepare_scriptable__(self) -> nn.GroupNorm:
        plain = nn.GroupNorm(self.num_groups, self.num_channels, self.eps, self.affine, device="meta")
        plain.weight, plain.bias = self.weight, self.bias
        return plain.train(self.training)


class InstanceNorm(nn.Module):
    """Normalization over the positions of one channel of one sample; no running statistics.

    y = (x - mean) / sqrt(var + eps) * weight + bias, with mean and biased var over the positions of each (n, c).

    Train and eval are the same. Shape: (N, C, L), (N, C, H, W) or (N, C, D, H, W), with more than one position; dtype
    and memory format kept, and channels_last as fast as contiguous (see `GroupNorm`).
    Differs from nn.InstanceNorm1d/2d/3d in taking any number of spatial dimensions and in refusing (N, C), which
    InstanceNorm1d reads as one unbatched sample.
    Raises: ValueError if a channel has one position, since its variance is 0 and the output would be the bias.
    See: Ulyanov et al. 2016, arXiv:1607.08022.

    >>> norm.InstanceNorm(8)(torch.randn(2, 8, 4, 4, 4)).shape
    torch.Size([2, 8, 4, 4, 4])
    """

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
        self.weight = nn.Parameter(torch.ones(num_features, device=device, dtype=dtype)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features, device=device, dtype=dtype)) if affine else None

    __prepare_scriptable__ = refuse_scripting

    def forward(self, x: Tensor) -> Tensor:
        if math.prod(x.shape[2:]) == 1:
            raise ValueError(
                f"Instance normalization needs more than one position per channel, got input {tuple(x.shape)}. "
                'Use kind "layer" or "group" here.'
            )
        # One channel a group; F.instance_norm refuses an empty batch.
        return group_norm(x, self.num_features, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, affine={self.affine}"
