"""Group and instance normalization of samples that are cut between the workers of a process group."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from syncnorm.norm.backends.by_sample.group_norm import group_norm
from syncnorm.norm.backends.dispatch import batch_norm, local_row
from syncnorm.norm.backends.interface import Request
from syncnorm.norm.distributed.collectives import world_size
from syncnorm.norm.layers.activation_checkpointing import recall, remember
from syncnorm.norm.layers.instance_norm import channel_groups
from syncnorm.norm.layers.scripting import refuse_scripting
from syncnorm.norm.statistics.moments import Exchanged, per_channel


class SyncGroupNorm(nn.Module):
    """Group normalization whose statistics of a sample cover its parts on every worker of a process group.

    y = (x - mean) / sqrt(var + eps) * weight + bias, with mean and biased var taken over the C / num_groups channels of
    a group and all positions of the sample, on all workers, each counting by its number of positions.

    For volumes too large for one device: each worker holds another part of the *same* N samples, of any size, also an
    empty one. In data-parallel training, where workers hold different samples, use GroupNorm: it needs no exchange.

    Train and eval are the same, with one exchange forward and one backward, so every worker must call the layer in
    both. The gradients of weight and bias are those of this worker's part: sum them over the group, or average them
    over W workers and multiply the loss by W.
    Shape: (N, C, *) -> (N, C, *), the same N and C on every worker; dtype and memory format kept. Statistics are
    computed in float32 or wider. process_group: the workers that share samples; None: all. state_dict: the keys of
    nn.GroupNorm, and without torch.distributed also its function.
    Raises: ValueError on every worker if a group has one value over all workers, since its variance is undefined;
    ExchangeError if workers bring another N.
    See: Wu & He 2018, arXiv:1803.08494, for the formula; Chan et al. 1979 for statistics of parts.

    >>> layer = norm.SyncGroupNorm(2, 8)
    >>> layer(torch.randn(1, 8, 4, 4, 4)).shape
    torch.Size([1, 8, 4, 4, 4])
    >>> layer.load_state_dict(nn.GroupNorm(2, 8).state_dict())
    <All keys matched successfully>
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        process_group: dist.ProcessGroup | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_groups = channel_groups(num_channels, num_groups)
        self.num_channels, self.eps, self.affine, self.process_group = num_channels, eps, affine, process_group
        self.weight = nn.Parameter(torch.ones(num_channels, device=device, dtype=dtype)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_channels, device=device, dtype=dtype)) if affine else None

    __prepare_scriptable__ = refuse_scripting

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() < 2 or x.shape[1] != self.num_channels:
            raise ValueError(
                f"{type(self).__name__} needs an input of shape (N, {self.num_channels}, *), got {tuple(x.shape)}. "
                "Set its channels to those of the layer before."
            )
        if world_size(self.process_group) == 1:
            return group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
        groups = self._as_channels(x)
        compiling = torch.compiler.is_compiling()
        known = None if compiling else recall(self, groups, local_row)
        y, exchanged = batch_norm(groups, Request(None, None, self.eps, self.process_group, self, known, None))
        if known is None:
            self._check_count(exchanged, groups)
            if not compiling:
                remember(self, groups, exchanged, y)
        return self._scaled(y.view(x.shape), x)

    def _as_channels(self, x: Tensor) -> Tensor:
        """x as one sample with a channel for each group of each sample, (1, N * G, values)."""
        channels = x.shape[0] * self.num_groups
        return x.reshape(1, channels, x.numel() // max(channels, 1))

    def _scaled(self, y: Tensor, x: Tensor) -> Tensor:
        """With scale and shift of each channel, in the dtype and memory format of x."""
        if self.weight is not None and self.bias is not None:
            y = torch.addcmul(per_channel(self.bias, y), y, per_channel(self.weight, y)).to(x.dtype)
        if x.dim() in _CHANNELS_LAST and x.is_contiguous(memory_format=_CHANNELS_LAST[x.dim()]):
            return y.contiguous(memory_format=_CHANNELS_LAST[x.dim()])
        return y

    def _check_count(self, exchanged: Exchanged, groups: Tensor) -> None:
        # Only a worker with at most one value can be in a group with one, so that only it reads the count back.
        if groups.shape[1] and groups.shape[2] <= 1 and exchanged.merged[0].item() == 1:
            raise ValueError(
                f"{type(self).__name__}({self.num_channels}) needs more than one value per group of channels over all "
                "workers, got 1. Use larger maps or fewer groups."
            )

    def extra_repr(self) -> str:
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.affine}"


class SyncInstanceNorm(SyncGroupNorm):
    """Instance normalization whose statistics of a sample cover its parts on every worker of a process group.

    y = (x - mean) / sqrt(var + eps) * weight + bias, with mean and biased var over the positions of each (n, c) on all
    workers. It is `SyncGroupNorm` with one channel a group: see there for shapes, parts, gradients and errors. In
    data-parallel training use InstanceNorm, which needs no exchange.
    See: Ulyanov et al. 2016, arXiv:1607.08022.

    >>> norm.SyncInstanceNorm(8)(torch.randn(1, 8, 4, 4, 4)).shape
    torch.Size([1, 8, 4, 4, 4])
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        affine: bool = True,
        process_group: dist.ProcessGroup | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, num_features, eps, affine, process_group, device, dtype)


_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
