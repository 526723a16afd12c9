"""Normalizations by statistics of a sample: what each measures on its part, and what it makes of the merged statistics.

Read from the calls of torch's functions, so that it does not matter whose layer makes them.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from syncnorm.norm.backends.by_sample.group_norm import group_norm
from syncnorm.norm.statistics.moments import Moments, compute_dtype, per_channel
from syncnorm.norm.statistics.sample_moments import group_variance, mean_square


@dataclass(frozen=True)
class Normalization:
    """One call. x: what it normalizes, (N, C, *). weight: its scale, by which the layer is known again.

    measure: statistics of a part of x, a value for each sample and group. finish: the answer of the call, from the
    merged statistics. bypass: an answer that mixes no positions.
    """

    x: Tensor
    weight: Tensor | None
    measure: Callable[[Tensor], Moments]
    finish: Callable[[Moments], Any]
    bypass: Callable[[], Any]


def read_call(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Normalization | None:
    """None for every other function, and for one that uses running statistics."""
    reader = _READERS.get(function)
    return None if reader is None else reader(*args, **kwargs)


def _group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: Any,
    **__: Any,
) -> Normalization:
    return Normalization(
        input,
        weight,
        partial(_measure, num_groups=num_groups),
        partial(_normalize, input, weight=weight, bias=bias, eps=eps),
        input.clone,
    )


def _instance_norm(*args: Any, **kwargs: Any) -> Normalization | None:
    given = _INSTANCE_NORM.bind(*args, **kwargs)
    given.apply_defaults()
    x, own = given.arguments["input"], given.arguments
    return _group_norm(x, x.shape[1], own["weight"], own["bias"], own["eps"]) if own["use_input_stats"] else None


def _mean_square(x: Tensor) -> Normalization:
    def finish(moments: Moments) -> tuple[Tensor, int]:
        return _per_sample(moments.mean, x), int(moments.count)

    def bypass() -> tuple[Tensor, int]:
        return x.new_ones((*x.shape[:2], *[1] * (x.dim() - 2))), math.prod(x.shape[2:])

    return Normalization(x, None, _measure_squares, finish, bypass)


def _group_variance(x: Tensor, num_groups: int) -> Normalization:
    shape = (x.shape[0], num_groups, 1)

    def finish(moments: Moments) -> Tensor:
        return moments.biased_variance.to(x.dtype).reshape(shape)

    return Normalization(x, None, partial(_measure, num_groups=num_groups), finish, lambda: x.new_ones(shape))


_INSTANCE_NORM = inspect.signature(F.instance_norm)
_READERS: dict[Any, Callable[..., Normalization | None]] = {
    F.group_norm: _group_norm,
    torch.group_norm: _group_norm,
    group_norm: _group_norm,
    F.instance_norm: _instance_norm,
    mean_square: _mean_square,
    group_variance: _group_variance,
}


def _measure(x: Tensor, num_groups: int) -> Moments:
    groups = x.to(compute_dtype(x)).reshape(len(x), num_groups, -1)
    var, mean = torch.var_mean(groups, 2, correction=0)
    count = math.prod(x.shape[1:]) // num_groups
    return Moments(_number(count, x), mean.double().flatten(), var.double().flatten() * count)


def _measure_squares(x: Tensor) -> Moments:
    """Of x^2, whose mean alone is needed."""
    mean = x.square().mean(list(range(2, x.dim()))).double().flatten()
    return Moments(_number(math.prod(x.shape[2:]), x), mean, torch.zeros_like(mean))


def _number(value: int, like: Tensor) -> Tensor:
    return torch.full((), value, dtype=torch.float64, device=like.device)


def _normalize(x: Tensor, moments: Moments, *, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias. Shape: that of x."""
    dtype = compute_dtype(x)
    scale = _per_sample(torch.rsqrt(moments.biased_variance + eps), x)
    if weight is not None:
        scale = scale * per_channel(weight, x)
    y = (x.to(dtype) - _per_sample(moments.mean, x)).mul_(scale)
    if bias is not None:
        y.add_(per_channel(bias, x))
    return y.to(F.group_norm(x[:0], 1).dtype)  # autocast may have torch answer in another than that of x


def _per_sample(values: Tensor, x: Tensor) -> Tensor:
    """(N * groups,) as (N, C, 1, ...), to combine with x (N, C, *) in its computing precision."""
    N, C = x.shape[:2]
    rows = values.to(compute_dtype(x)).view(N, -1)
    return rows.repeat_interleave(C // rows.shape[1], 1).view(N, C, *[1] * (x.dim() - 2))
