"""Batch normalization over the batches of all workers of a process group."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from syncnorm.norm.backends.dispatch import batch_norm, local_row
from syncnorm.norm.backends.interface import Request, Running
from syncnorm.norm.layers.activation_checkpointing import recall, remember
from syncnorm.norm.layers.scripting import refuse_scripting
from syncnorm.norm.memory.recorder import current
from syncnorm.norm.shapes import check_channels, check_running_statistics
from syncnorm.norm.statistics.moments import Exchanged
from syncnorm.norm.torch_compat import BatchNormBase


class SyncBatchNorm(BatchNormBase):
    """Batch normalization whose statistics cover every worker of a process group.

    y = (x - mean) / sqrt(var + eps) * weight + bias, with mean and biased var taken over N and all spatial
    positions of all workers, each worker counting by its number of values.

    Train: uses batch statistics and updates running_mean and running_var (Bessel-corrected, with the group's count):
    running += momentum * (batch - running); momentum=None is the cumulative average. A batch with a NaN or an infinity
    leaves the buffers alone and counts in `num_non_finite_batches`.
    Eval: uses the running statistics; without them this worker's own batch, as torch does. No exchange.
    A worker may bring an empty batch; it still takes part in the exchange.

    Shape: (N, C, *) -> (N, C, *), dtype and memory format kept. Statistics are computed in float32 or wider.
    process_group: the workers that share statistics; None: all. Without torch.distributed it is nn.BatchNorm.
    state_dict: the keys of nn.BatchNorm1d/2d/3d. Runs on CPU and GPU, and under DDP on both.
    Raises: ValueError on every worker if the whole group holds one value per channel, since its variance is undefined.
    See: Ioffe & Szegedy 2015, arXiv:1502.03167, Alg. 1; Peng et al. 2018 (MegDet), arXiv:1711.07240, for the exchange.

    >>> layer = norm.SyncBatchNorm(8)
    >>> layer(torch.randn(2, 8, 4, 4)).shape
    torch.Size([2, 8, 4, 4])
    >>> layer.load_state_dict(nn.BatchNorm2d(8).state_dict())
    <All keys matched successfully>
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: dist.ProcessGroup | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        if affine and not bias:
            self.register_parameter("bias", None)
        self.process_group = process_group
        self.num_non_finite_batches: Tensor
        self.register_buffer(
            "num_non_finite_batches", torch.zeros((), dtype=torch.long, device=device), persistent=False
        )

    __prepare_scriptable__ = refuse_scripting

    def forward(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)
        if not self.training:
            use_batch = self.running_mean is None and self.running_var is None
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, use_batch, 0.0, self.eps
            )
        compiling = torch.compiler.is_compiling()
        known = None if compiling else recall(self, x, local_row)
        running = self._running() if known is None and self.track_running_stats else None
        request = Request(self.weight, self.bias, self.eps, self.process_group, self, known, running)
        y, exchanged = batch_norm(x, request)
        if not compiling and (recorder := current()) is not None:
            compute = partial(_output, request._replace(known=exchanged, running=None))
            recorder.offer(x, y, compute, (self.weight, self.bias))
        if known is None:
            self._check_count(exchanged, x)
            if not compiling:
                remember(self, x, exchanged, y)
        return y

    def reset_running_stats(self) -> None:
        """As every batch normalization, and nothing counts as non-finite any more."""
        super().reset_running_stats()
        if "num_non_finite_batches" in self._buffers:  # not yet while the base class is built
            self._count_anew()

    def _load_from_state_dict(self, *args: Any) -> None:
        """As every module. The count of non-finite batches starts anew, where the statistics are now."""
        super()._load_from_state_dict(*args)
        self._count_anew()

    def _count_anew(self) -> None:
        """No batch counts as non-finite, on the device where the statistics are."""
        if self.num_non_finite_batches.device == self._device():
            self.num_non_finite_batches.zero_()
        else:
            self.num_non_finite_batches = torch.zeros_like(self.num_non_finite_batches, device=self._device())

    def _device(self) -> torch.device:
        """Where its statistics are."""
        return self.num_non_finite_batches.device if self.running_mean is None else self.running_mean.device

    def _running(self) -> Running:
        mean, var, num_batches = self.running_mean, self.running_var, self.num_batches_tracked  # each costs a search
        if mean is None or var is None or num_batches is None:
            check_running_statistics(self)
        num_non_finite = self.num_non_finite_batches
        if mean is not None and num_non_finite.device != mean.device:  # a buffer that was replaced, as by assign=True
            self._count_anew()
            num_non_finite = self.num_non_finite_batches
        return Running(self.momentum, mean, var, num_batches, num_non_finite)

    def _check_input_dim(self, input: Tensor) -> None:
        check_channels(self, input)

    def _check_count(self, exchanged: Exchanged, x: Tensor) -> None:
        # Only a worker with at most one value can be in a group with one, so that only it reads the count back.
        if x.numel() <= x.shape[1] and exchanged.merged[0].item() == 1:
            raise ValueError(
                f"SyncBatchNorm({self.num_features}) needs more than one value per channel over the whole group to "
                "train, got 1. Use a larger batch, larger maps, or eval()."
            )


def _output(request: Request, x: Tensor) -> Tensor:
    """The output for x, of statistics that are known."""
    return batch_norm(x, request)[0]
