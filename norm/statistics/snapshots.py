"""The running statistics of every layer of a model at one moment, and their drift."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from syncnorm.norm.modules import first_input
from syncnorm.norm.statistics.freezing import has_frozen_statistics
from syncnorm.norm.statistics.moments import Moments, measure, merge_rows


@dataclass(frozen=True, eq=False)
class NormSnapshot:
    """One layer's statistics, copied to the CPU.

    running_mean, running_var: (C,); running_var is Bessel-corrected, except in layers converted from elsewhere.
    running_mean_abs: mean of |running_mean| over channels. running_var_mean: mean of running_var over channels.
    num_batches_tracked: batches behind the averages; None where the layer does not count.
    drift: distance of the last observed batch from the running statistics, see `drift`; None without `observe`.
    frozen: whether the statistics never change, as those of a frozen layer.

    >>> norm.snapshot(nn.Sequential(nn.BatchNorm2d(8)))["0"].running_var_mean
    1.0
    """

    kind: str
    running_mean: Tensor
    running_var: Tensor
    running_mean_abs: float
    running_var_mean: float
    num_batches_tracked: int | None
    drift: float | None = None
    frozen: bool = False


def snapshot(model: nn.Module) -> dict[str, NormSnapshot]:
    """The statistics of every layer that keeps running ones, by module path. Reads from the device once a layer.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    >>> norm.snapshot(model)["1"].running_mean.shape
    torch.Size([8])
    """
    return {
        path: _snapshot(layer)
        for path, layer in model.named_modules()
        if isinstance(getattr(layer, "running_mean", None), Tensor)
    }


def drift(mean: Tensor, running_mean: Tensor, running_var: Tensor, eps: float = 1e-5) -> float:
    """Mean over channels of |mean - running_mean| / sqrt(running_var + eps): in standard deviations, 0 is no drift."""
    return float(((mean - running_mean).abs() / (running_var + eps).sqrt()).mean())


@contextmanager
def observe(model: nn.Module) -> Iterator[None]:
    """Within, every forward notes each layer's batch statistics, so that `snapshot` can tell the drift.

    The statistics are those of this worker's batch. Costs one more pass over each layer's input, so turn it on for the
    steps before a snapshot, not for all.

    >>> model = nn.Sequential(nn.BatchNorm1d(1, momentum=0.0))
    >>> with norm.observe(model):
    ...     _ = model(torch.tensor([[1.0], [3.0]]))
    >>> round(norm.snapshot(model)["0"].drift, 3)  # the batch's mean is 2, the running mean 0 with variance 1
    2.0
    """
    handles = [
        layer.register_forward_pre_hook(_note_batch, with_kwargs=True)
        for layer in model.modules()
        if isinstance(getattr(layer, "running_mean", None), Tensor)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def note_batch(layer: nn.Module, rows: Sequence[Tensor]) -> None:
    """Note what all of a batch's parts have, whose rows these are, if the last one was noted under `observe`."""
    if "_norm_last_batch" in vars(layer):
        object.__setattr__(layer, "_norm_last_batch", merge_rows(torch.stack(list(rows))))


def _note_batch(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    object.__setattr__(layer, "_norm_last_batch", measure(first_input(args, kwargs)))


def _snapshot(layer: nn.Module) -> NormSnapshot:
    mean, var = (_copy(layer.get_buffer(name)) for name in ("running_mean", "running_var"))
    count = getattr(layer, "num_batches_tracked", None)
    batch: Moments | None = layer.__dict__.get("_norm_last_batch")
    return NormSnapshot(
        kind=nn.utils.parametrize.type_before_parametrizations(layer).__name__,
        running_mean=mean,
        running_var=var,
        running_mean_abs=float(mean.abs().mean()),
        running_var_mean=float(var.mean()),
        num_batches_tracked=None if count is None else int(count),
        drift=None if batch is None else drift(_copy(batch.mean), mean, var, getattr(layer, "eps", 1e-5)),
        frozen=has_frozen_statistics(layer),
    )


def _copy(values: Tensor) -> Tensor:
    return values.detach().to(device="cpu", dtype=torch.float64, copy=True)
