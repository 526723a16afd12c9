"""Batch renormalization, over one worker's samples or over those of a process group."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from syncnorm.norm.backends import reference
from syncnorm.norm.backends.arguments import check_per_channel
from syncnorm.norm.layers.activation_checkpointing import recall, remember
from syncnorm.norm.layers.scripting import refuse_scripting
from syncnorm.norm.shapes import check_channels
from syncnorm.norm.statistics.moments import Exchanged, Moments, as_row, exchange, measure, measure_row, of_row
from syncnorm.norm.statistics.transforms import move_outside_transforms
from syncnorm.norm.torch_compat import BatchNormBase


@dataclass(frozen=True)
class RenormSchedule:
    """How far the batch may be corrected, by step: not at all at first, then linearly more.

    r_max: largest factor of the standard deviation; d_max: largest shift, in running standard deviations. Up to step
    `warmup_steps` they are 1 and 0, which is batch normalization; at `r_max_steps` and `d_max_steps` they are reached.

    >>> schedule = norm.RenormSchedule(r_max=3.0, d_max=5.0, warmup_steps=100, r_max_steps=200, d_max_steps=200)
    >>> [(float(r), float(d)) for r, d in (schedule.limits(torch.tensor(step)) for step in (50, 150, 300))]
    [(1.0, 0.0), (2.0, 2.5), (3.0, 5.0)]
    """

    r_max: float = 3.0
    d_max: float = 5.0
    warmup_steps: int = 5000
    r_max_steps: int = 40000
    d_max_steps: int = 25000

    def limits(self, step: Tensor) -> tuple[Tensor, Tensor]:
        """The bounds on r and d at `step`, without reading it back from the device."""
        r_share, d_share = (
            ((step - self.warmup_steps) / max(end - self.warmup_steps, 1)).clamp(0, 1)
            for end in (self.r_max_steps, self.d_max_steps)
        )
        return 1 + r_share * (self.r_max - 1), d_share * self.d_max


@dataclass(frozen=True, eq=False)
class _Corrected(Exchanged):
    """With the corrections, which come from running statistics that have moved when a forward is run again."""

    r: Tensor
    d: Tensor


class _BatchRenorm(BatchNormBase):
    """What both forms share: the corrections r and d, and the running statistics."""

    # Plain batch statistics, while population statistics are taken.
    population_mode: ClassVar[Mapping[str, object]] = {"schedule": RenormSchedule(r_max=1.0, d_max=0.0)}

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.01,
        affine: bool = True,
        *,
        schedule: RenormSchedule | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, True, device, dtype)
        self.schedule = schedule or RenormSchedule()

    __prepare_scriptable__ = refuse_scripting

    def forward(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        self._check_tensors(x)
        compiling = torch.compiler.is_compiling()
        known = None if compiling else recall(self, x, measure_row)
        assert known is None or isinstance(known, _Corrected)
        moments, exchanged = self._measure(x, known)
        r, d = self._corrections(of_row(exchanged.merged)) if known is None else (known.r, known.d)
        y = self._normalize(x, moments, *self.corrected_affine(r, d))
        if known is None:
            if self.track_running_stats:
                buffers = self.running_mean, self.running_var, self.num_batches_tracked
                move_outside_transforms(self._update, exchanged.merged, buffers)
            if not compiling:
                remember(self, x, _Corrected(exchanged.local, exchanged.merged, r, d), y)
        return y

    def corrected_affine(self, r: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and shift of y = weight * (x_hat * r + d) + bias, with r and d as constants."""
        return (r, d) if self.weight is None else (self.weight * r, self.weight * d + self.bias)

    @abstractmethod
    def _measure(self, x: Tensor, known: Exchanged | None) -> tuple[Moments, Exchanged]:
        """The statistics of the batch; `known`: what they were when this forward ran first."""

    @abstractmethod
    def _normalize(self, x: Tensor, moments: Moments, weight: Tensor, bias: Tensor) -> Tensor:
        """x_hat * weight + bias, differentiable through the batch statistics."""

    @torch.no_grad()
    def _corrections(self, moments: Moments) -> tuple[Tensor, Tensor]:
        assert self.running_mean is not None
        assert self.num_batches_tracked is not None
        r_limit, d_limit = self.schedule.limits(self.num_batches_tracked)
        std = self._running_std()
        batch_std = (moments.biased_variance + self.eps).sqrt()
        r = torch.clamp(batch_std / std, 1 / r_limit, r_limit)
        d = torch.clamp((moments.mean - self.running_mean) / std, -d_limit, d_limit)
        return r.to(self.running_mean.dtype), d.to(self.running_mean.dtype)

    def _update(self, row: Tensor) -> None:
        moments = of_row(row)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        std = self._running_std()
        batch_std = (moments.biased_variance + self.eps).sqrt()
        is_usable = (moments.count > 0) & torch.isfinite(moments.mean).all() & torch.isfinite(batch_std).all()
        self.num_batches_tracked.add_(is_usable)
        step = self.momentum if self.momentum is not None else 1 / self.num_batches_tracked
        mean = self.running_mean + step * (moments.mean - self.running_mean)
        var = (std + step * (batch_std - std)).square() - self.eps
        self.running_mean.copy_(torch.where(is_usable, mean, self.running_mean))
        self.running_var.copy_(torch.where(is_usable, var, self.running_var))

    def _running_std(self) -> Tensor:
        assert self.running_var is not None
        return (self.running_var.double().clamp_min(0) + self.eps).sqrt()

    def _check_tensors(self, x: Tensor) -> None:
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            if getattr(self, name) is None:
                raise ValueError(
                    f"{type(self).__name__} corrects a batch towards the running statistics and needs {name} in "
                    "training, which is None. Use batch normalization where there are none."
                )
        check_per_channel(
            x, weight=self.weight, bias=self.bias, running_mean=self.running_mean, running_var=self.running_var
        )

    def _check_input_dim(self, input: Tensor) -> None:
        check_channels(self, input)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, schedule={self.schedule}"


class BatchRenorm(_BatchRenorm):
    """Batch normalization corrected towards the running statistics, over one worker's samples.

    y = ((x - mean) / std * r + d) * weight + bias, std = sqrt(var + eps), biased var, with
    r = clip(std / running_std, 1 / r_max, r_max) and d = clip((mean - running_mean) / running_std, -d_max, d_max),
    both constants in backward and computed from the running statistics before this batch. Where nothing is clipped y is
    what eval would give, but the gradient still goes through the batch statistics.

    Train: then updates running_mean and the running standard deviation with weight `momentum` for the new batch. r_max
    and d_max follow `schedule`, whose step counter is num_batches_tracked. Eval: uses the running statistics.

    Shape: (N, C, *) -> (N, C, *). state_dict: the keys of nn.BatchNorm2d. The moving average is that of the standard
    deviation; running_var is derived as running_std^2 - eps and therefore biased, unlike in nn.BatchNorm2d.
    Raises: ValueError for one value per channel in training.
    See: Ioffe 2017, arXiv:1702.03275, Alg. 1; the defaults are the momentum and the schedule of its experiments.

    >>> layer = norm.BatchRenorm(4, schedule=norm.RenormSchedule(warmup_steps=0, r_max_steps=1, d_max_steps=1))
    >>> layer(torch.randn(2, 4, 8, 8)).shape, int(layer.num_batches_tracked)
    (torch.Size([2, 4, 8, 8]), 1)
    """

    def _measure(self, x: Tensor, known: Exchanged | None) -> tuple[Moments, Exchanged]:  # noqa: ARG002
        moments = measure(x)
        row = as_row(moments).detach()  # in forward mode, without a tangent
        return moments, Exchanged(row, row)

    def _normalize(self, x: Tensor, moments: Moments, weight: Tensor, bias: Tensor) -> Tensor:  # noqa: ARG002
        return F.batch_norm(x, None, None, weight, bias, True, 0.0, self.eps)


class SyncBatchRenorm(_BatchRenorm):
    """`BatchRenorm` over the samples of every worker of `process_group` (None: all workers).

    mean and var are those of the whole group's batch, each worker counting by its values, so r and d are the same on
    every worker. A worker may bring an empty batch; it still takes part in the exchange.
    Raises: ValueError on every worker if the whole group holds one value per channel.
    Shape: (N, C, *) -> (N, C, *). See `BatchRenorm` for training, evaluation and the paper.

    >>> norm.SyncBatchRenorm(4)(torch.randn(2, 4, 8, 8)).shape
    torch.Size([2, 4, 8, 8])
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.01,
        affine: bool = True,
        process_group: dist.ProcessGroup | None = None,
        *,
        schedule: RenormSchedule | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, schedule=schedule, device=device, dtype=dtype)
        self.process_group = process_group

    def _measure(self, x: Tensor, known: Exchanged | None) -> tuple[Moments, Exchanged]:
        moments, exchanged = exchange(x, None, self.process_group, self, known)
        # Only a worker with at most one value can be in a group with one, so that only it reads the count back.
        if known is None and x.numel() <= x.shape[1] and moments.count.item() == 1:
            raise ValueError(
                f"SyncBatchRenorm({self.num_features}) needs more than one value per channel over the whole group to "
                "train, got 1. Use a larger batch, larger maps, or eval()."
            )
        return moments, exchanged

    def _normalize(self, x: Tensor, moments: Moments, weight: Tensor, bias: Tensor) -> Tensor:
        return reference.normalize(x, moments, self.eps, weight, bias)
