"""Count, mean and sum of squared deviations of each channel: measured, merged, and shared by a process group.

The only place that combines statistics. Everything is float64 with one row of 2C+1 numbers per worker, centred
before it leaves the worker: a mean of squares minus a squared mean never appears.

Legend: N samples, C channels, L all spatial positions, W workers, F = 2C+1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from syncnorm.norm.distributed.collectives import all_reduce, gather_differentiably, gather_rows
from syncnorm.norm.torch_compat import is_in_forward_mode, is_inside_functorch


@dataclass(frozen=True)
class Moments:
    """Statistics of each channel. `count`: () values behind each channel; `mean`, `m2`: (C,); all float64.

    m2 is the sum of squared deviations from the mean, so that moments of disjoint parts add up (Chan et al. 1979).
    With weights, `count` is the sum of weights.

    >>> moments = norm.synced_moments(torch.tensor([[1.0], [2.0], [6.0]]))
    >>> float(moments.count), float(moments.mean), round(float(moments.unbiased_variance), 6)
    (3.0, 3.0, 7.0)
    """

    count: Tensor
    mean: Tensor
    m2: Tensor

    @property
    def biased_variance(self) -> Tensor:
        """m2 / count; 0 for an empty batch."""
        return self.m2 / _at_least_one(self.count)

    @property
    def unbiased_variance(self) -> Tensor:
        """m2 / (count - 1) (Bessel-corrected); 0 where count <= 1. Weights count as frequencies."""
        return self.m2 / torch.where(self.count > 1, self.count - 1, torch.ones_like(self.count))


def synced_moments(
    x: Tensor,
    group: dist.ProcessGroup | None = None,
    *,
    weights: Tensor | None = None,
    layer: nn.Module | None = None,
) -> Moments:
    """Moments of each channel over the batches of every worker in `group` (None: all workers).

    x: (N, C, *), N may be 0 on some workers or on all. weights: None, or (N, *) or broadcastable to it: a boolean mask
    (padding is False) or non-negative weights, treated as constants. layer: who asks, named in an ExchangeError.

    Differentiable in x to any order: dx = w * (G_mean / count + 2 * G_m2 * (x - mean)), where G are the gradients
    summed over the workers. One collective forward, one backward; every worker of the group must enter both.
    Without torch.distributed, or in a group of one, it is the moments of x.
    Raises: ExchangeError on every worker that is not met by all others in the same layer.

    >>> moments = norm.synced_moments(torch.tensor([[1.0], [2.0], [9.0]]), weights=torch.tensor([True, True, False]))
    >>> float(moments.count), float(moments.mean)
    (2.0, 1.5)
    """
    return exchange(x, weights, group, layer, None)[0]


def exchange(
    x: Tensor,
    weights: Tensor | None,
    group: dist.ProcessGroup | None,
    layer: nn.Module | None,
    known: Exchanged | None,
) -> tuple[Moments, Exchanged]:
    """`synced_moments` and what it exchanged. With `known`, of an earlier call for the same x, it exchanges nothing."""
    if torch.compiler.is_compiling():
        layer = known = None
    elif known is None and (is_inside_functorch() or is_in_forward_mode()):
        return _composed(x, weights, group, layer)
    count, mean, m2, local = _SyncedMoments.apply(x, weights, group, layer, known)  # type: ignore[no-untyped-call]
    moments = Moments(count, mean, m2)
    if known is None:
        known = Exchanged(local, as_row(moments).detach())
    return moments, known


@dataclass(frozen=True, eq=False)
class Exchanged:
    """One exchange: this worker's row and the group's, (2C+1,) each."""

    local: Tensor
    merged: Tensor


def measure(x: Tensor, weights: Tensor | None = None) -> Moments:
    """Moments of each channel of this worker's x (N, C, *) alone, centred, without a gradient. See `synced_moments`."""
    with torch.no_grad():
        return _measure(x, weights)


def measure_row(x: Tensor) -> Tensor:
    """`measure` as a row."""
    return as_row(measure(x))


def merge(counts: Tensor, means: Tensor, m2s: Tensor) -> Moments:
    """Moments of the union of K disjoint parts. counts: (K,); means, m2s: (K, C); parts of count 0 don't matter."""
    count = counts.sum(0)
    weights = counts.unsqueeze(1)
    mean = (weights * means).sum(0) / _at_least_one(count)
    # Chan et al. 1979: m2 adds up, plus the spread between the means.
    m2 = (m2s + weights * (means - mean).square()).sum(0)
    return Moments(count, mean, m2)


def merge_rows(rows_RF: Tensor) -> Moments:
    """`merge` of the moments in R rows of 2C+1 numbers."""
    num_channels = rows_RF.shape[1] // 2
    counts, means, m2s = torch.split(rows_RF, [1, num_channels, num_channels], 1)
    return merge(counts.squeeze(1), means, m2s)


def compute_dtype(x: Tensor) -> torch.dtype:
    """float32 for half precisions, otherwise the dtype of x.

    Raises: ValueError for integers and complex numbers.
    """
    if not x.dtype.is_floating_point:
        raise ValueError(
            f"Normalization needs an input of floating-point numbers, got {x.dtype}. Convert integers first, for "
            "example by x.float(), and normalize real and imaginary part as two channels."
        )
    return torch.promote_types(x.dtype, torch.float32)


def per_channel(values: Tensor, x: Tensor) -> Tensor:
    """(C,) as (1, C, 1, ...), to combine with x (N, C, *) in its computing precision."""
    return values.to(compute_dtype(x)).view(1, -1, *[1] * (x.dim() - 2))


def as_row(moments: Moments) -> Tensor:
    """(2C+1,): count, means, m2s, as they travel."""
    return torch.cat([moments.count.view(1), moments.mean, moments.m2])


def of_row(row: Tensor) -> Moments:
    """The moments in a row of 2C+1 numbers."""
    count, mean, m2 = torch.split(row, [1, row.numel() // 2, row.numel() // 2])
    return Moments(count.squeeze(0), mean, m2)


class _SyncedMoments(torch.autograd.Function):
    @staticmethod
    def forward(
        x: Tensor,
        weights: Tensor | None,
        group: dist.ProcessGroup | None,
        layer: nn.Module | None,
        known: Exchanged | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if known is not None:
            merged = of_row(known.merged.clone())
            return merged.count.clone(), merged.mean.clone(), merged.m2.clone(), known.local.clone()
        local = as_row(measure(x, weights))
        rows_WF = gather_rows(local, group, layer, "forward")
        merged = merge_rows(rows_WF)
        return merged.count, merged.mean, merged.m2, local

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
        x, weights, ctx.group, ctx.layer, _ = inputs
        count, mean, _, local = output
        ctx.mark_non_differentiable(count, local)
        ctx.save_for_backward(x, weights, count, mean)

    @staticmethod
    def backward(ctx, _, grad_mean: Tensor, grad_m2: Tensor, __):  # type: ignore[no-untyped-def]
        # `mean` is a saved output: through it a second derivative comes back here.
        x, weights, count, mean = ctx.saved_tensors
        grads = all_reduce(torch.cat([grad_mean, grad_m2]), ctx.group, ctx.layer)
        grad_mean, grad_m2 = torch.split(grads, mean.numel())
        offset = per_channel(grad_mean / _at_least_one(count), x)
        dx = offset + per_channel(2 * grad_m2, x) * (x.to(compute_dtype(x)) - per_channel(mean, x))
        if weights is not None:
            dx = torch.where(_with_channel(weights, x) > 0, dx * _with_channel(weights, x), 0)
        return dx.to(x.dtype), None, None, None, None


def _composed(
    x: Tensor, weights: Tensor | None, group: dist.ProcessGroup | None, layer: nn.Module | None
) -> tuple[Moments, Exchanged]:
    """`exchange` as a composition, for torch.func and for forward mode: every operation in it can be transformed."""
    local = as_row(_measure(x, weights))
    moments = merge_rows(gather_differentiably(local, group, layer))
    return moments, Exchanged(local.detach(), as_row(moments).detach())


def _measure(x: Tensor, weights: Tensor | None) -> Moments:
    if weights is not None:
        return _measure_weighted(x, weights)
    num_values = x.numel() // max(x.shape[1], 1)
    count = torch.full((), num_values, dtype=torch.float64, device=x.device)
    if num_values == 0:
        zeros = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
        return Moments(count, zeros, zeros.clone())
    var, mean = torch.var_mean(x.to(compute_dtype(x)), _all_but_channel(x), correction=0)
    return Moments(count, mean.double(), var.double() * num_values)


def _measure_weighted(x: Tensor, weights: Tensor) -> Moments:
    w = _with_channel(weights, x).double().expand(x.shape[0], 1, *x.shape[2:])
    dims = _all_but_channel(x)
    # What has no weight is not read: padding may hold anything, NaN included.
    values = torch.where(w > 0, x, 0).double()
    count = w.sum()
    mean = (w * values).sum(dims) / _at_least_one(count)
    m2 = (w * (values - per_channel(mean, values)).square()).sum(dims)
    return Moments(count, mean, m2)


def _with_channel(weights: Tensor, x: Tensor) -> Tensor:
    return weights.to(compute_dtype(x)).reshape(
        weights.shape[0], 1, *weights.shape[1:], *[1] * (x.dim() - 1 - weights.dim())
    )


def _all_but_channel(x: Tensor) -> list[int]:
    return [0, *range(2, x.dim())]


def _at_least_one(count: Tensor) -> Tensor:
    """To divide by: nothing is divided by an empty batch, and weights may sum to less than one."""
    return torch.where(count > 0, count, torch.ones_like(count))
