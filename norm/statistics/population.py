"""Population statistics: means and variances over a whole data set, under weights that stay as they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from syncnorm.norm.distributed.collectives import all_reduce, gather_rows, world_size
from syncnorm.norm.modules import call_with, first_input, required_arguments
from syncnorm.norm.statistics.freezing import has_frozen_statistics
from syncnorm.norm.statistics.moments import Moments, measure, merge, synced_moments
from syncnorm.norm.statistics.snapshots import drift
from syncnorm.norm.torch_compat import BatchNormBase

Estimator = Literal["pooled", "paper"]


@dataclass(frozen=True, eq=False)
class LayerPopulation:
    """One layer's population statistics.

    mean, var: (C,), float64 on the CPU, var Bessel-corrected. drift: how far the running mean there was is from
    `mean`, in standard deviations; see `snapshots.drift`. mean_abs: mean of |mean| over channels. var_mean: mean of var
    over channels.

    >>> model = nn.Sequential(nn.BatchNorm1d(1))
    >>> layer = norm.recompute_population_statistics(model, [torch.tensor([[1.0], [3.0]])]).layers["0"]
    >>> layer.mean, layer.var
    (tensor([2.], dtype=torch.float64), tensor([2.], dtype=torch.float64))
    """

    mean: Tensor
    var: Tensor
    drift: float

    @property
    def mean_abs(self) -> float:
        return float(self.mean.abs().mean())

    @property
    def var_mean(self) -> float:
        return float(self.var.mean())


@dataclass(frozen=True, eq=False)
class PopulationStatistics:
    """What was computed, and from how much: batches and samples of all workers of the group.

    >>> model = nn.Sequential(nn.BatchNorm1d(1))
    >>> found = norm.recompute_population_statistics(model, [torch.randn(4, 1), torch.randn(2, 1)])
    >>> found.num_batches, found.num_samples, list(found.layers)
    (2, 6, ['0'])
    """

    estimator: Estimator
    num_batches: int
    num_samples: int
    layers: Mapping[str, LayerPopulation]


def recompute_population_statistics(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    estimator: Estimator = "pooled",
    process_group: dist.ProcessGroup | None = None,
) -> PopulationStatistics:
    """Replace the running statistics of every batch normalization by those of `batches`; no weight is touched.

    pooled: mean and Bessel-corrected variance of all values together, every value counting once.
    paper: E = mean of the batch means, Var = mean of the Bessel-corrected batch variances; every batch counts once.
        For a synchronized layer a batch is that of its whole group.
    All layers normalize by batch statistics meanwhile, without noise or renormalization; dropout is off. Frozen layers
    stay. Training modes, momenta and counters are as before afterwards, and after a failure the statistics too.

    batches: inputs of the model: a tensor, a mapping of keyword arguments, or a tuple that begins with the inputs. Of a
        tuple the model gets as many elements as its forward requires, and at least one: targets may come after them.
    process_group: the workers whose batches count; each calls this with its own, and all get the same statistics.
    Raises: ValueError without a single batch, or where a worker of a synchronized model has none.
    See: Ioffe & Szegedy 2015, arXiv:1502.03167, Alg. 2; Wu & Johnson 2021, arXiv:2105.07576, sec. 3.

    >>> model = nn.Sequential(nn.BatchNorm1d(1))
    >>> _ = norm.recompute_population_statistics(model, [torch.tensor([[1.0], [3.0]])], estimator="pooled")
    >>> model[0].running_mean, model[0].running_var
    (tensor([2.]), tensor([2.]))
    """
    if estimator not in ("pooled", "paper"):
        raise ValueError(f'estimator must be "pooled" or "paper", got {estimator!r}.')
    layers = {path: layer for path, layer in model.named_modules() if keeps_batch_statistics(layer)}
    tallies = {path: _Tally(estimator, layer) for path, layer in layers.items()}
    device = next((layer.running_mean.device for layer in layers.values()), torch.device("cpu"))
    is_synchronized = any(_is_synchronized(layer) for layer in layers.values())
    sizes = []
    with _batch_statistics_mode(model, layers), _watched(layers, tallies), torch.no_grad():
        for batch in _in_step(batches, process_group, device) if is_synchronized else batches:
            sizes.append(_call(model, batch))
    totals = torch.tensor([sum(size > 0 for size in sizes), sum(sizes)], dtype=torch.float64, device=device)
    num_batches, num_samples = (int(total) for total in all_reduce(totals, process_group))
    if num_batches == 0:
        raise ValueError("Population statistics need at least one batch, got none. Check the data loader.")
    found = {path: tally.result(process_group) for path, tally in tallies.items()}
    return PopulationStatistics(
        estimator,
        num_batches,
        num_samples,
        {path: _store(layers[path], *result) for path, result in found.items() if result is not None},
    )


class _Tally:
    """What one layer has seen, as moments: of all values (pooled), or of the batches' means and variances (paper)."""

    def __init__(self, estimator: Estimator, layer: nn.Module) -> None:
        self.estimator = estimator
        self.is_synchronized = _is_synchronized(layer)
        self.parts: list[Moments] = []

    def see(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward pre-hook of the layer."""
        x = first_input(args, kwargs)
        is_shared = self.estimator == "paper" and self.is_synchronized
        batch = synced_moments(x, vars(layer)["process_group"]) if is_shared else measure(x)
        if self.estimator == "paper":
            # One vote a batch, whatever its size: the estimates themselves are what is averaged.
            estimates = torch.cat([batch.mean, batch.unbiased_variance])
            batch = Moments((batch.count > 0).double(), estimates, torch.zeros_like(estimates))
        self.parts = [_merge([*self.parts, batch])]

    def result(self, group: dist.ProcessGroup | None) -> tuple[Tensor, Tensor] | None:
        """Mean and Bessel-corrected variance over all workers; None where the layer was never reached."""
        if not self.parts:
            return None
        total = self.parts[0]
        rows = gather_rows(torch.cat([total.count.view(1), total.mean, total.m2]), group)
        total = _merge([Moments(row[0], *row[1:].chunk(2)) for row in rows])
        if self.estimator == "paper":
            mean, var = total.mean.chunk(2)
            return mean, var
        return total.mean, total.unbiased_variance


def _merge(parts: list[Moments]) -> Moments:
    counts, means, m2s = ([getattr(part, name) for part in parts] for name in ("count", "mean", "m2"))
    return merge(torch.stack(counts), torch.stack(means), torch.stack(m2s))


def keeps_batch_statistics(layer: nn.Module) -> bool:
    """Whether it has running statistics of batches that population statistics would replace; frozen ones stay."""
    return isinstance(layer, BatchNormBase) and layer.running_mean is not None and not has_frozen_statistics(layer)


def _is_synchronized(layer: nn.Module) -> bool:
    return "process_group" in vars(layer)


def _store(layer: nn.Module, mean: Tensor, var: Tensor) -> LayerPopulation:
    running_mean, running_var = layer.get_buffer("running_mean"), layer.get_buffer("running_var")
    moved = drift(mean, running_mean.double(), running_var.double())
    running_mean.copy_(mean)
    running_var.copy_(var)
    return LayerPopulation(mean.cpu(), var.cpu(), moved)


@contextmanager
def _watched(layers: Mapping[str, nn.Module], tallies: Mapping[str, _Tally]) -> Iterator[None]:
    handles = [layer.register_forward_pre_hook(tallies[path].see, with_kwargs=True) for path, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _batch_statistics_mode(model: nn.Module, layers: Mapping[str, nn.Module]) -> Iterator[None]:
    """Everything in eval mode, but `layers` normalizing by batch statistics; all as before afterwards, buffers too."""
    modes = [(module, module.training) for module in model.modules()]
    settings = [(layer, {"momentum": 0.0, **getattr(layer, "population_mode", {})}) for layer in layers.values()]
    before = [(layer, {name: getattr(layer, name) for name in changes}) for layer, changes in settings]
    buffers = [(buffer, buffer.clone()) for layer in layers.values() for buffer in layer.buffers(recurse=False)]
    try:
        model.eval()
        for layer, changes in settings:
            layer.training = True
            vars(layer).update(changes)
        yield
    finally:
        for layer, values in before:
            vars(layer).update(values)
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


def _in_step(batches: Iterable[Any], group: dist.ProcessGroup | None, device: torch.device) -> Iterator[Any]:
    """The batches of this worker, then empty ones while others still have some: every collective is entered by all."""
    iterator, last, nothing = iter(batches), None, object()
    for step in count():
        batch = next(iterator, nothing)
        have = int(all_reduce(torch.tensor([float(batch is not nothing)], device=device), group))
        if step == 0 and 0 < have < world_size(group):
            raise ValueError(
                f"Every worker of a synchronized model needs at least one batch: {have} of {world_size(group)} have "
                "any. Give each worker a share of the data."
            )
        if have == 0:
            return
        last = _emptied(last) if batch is nothing else batch
        yield last


def _call(model: nn.Module, batch: Any) -> int:
    """Forward `batch`; the number of its samples."""
    if isinstance(batch, Mapping):
        call_with(model, batch)
        return next((len(value) for value in batch.values() if isinstance(value, Tensor)), 0)
    inputs = tuple(batch[: required_arguments(model)]) if isinstance(batch, tuple | list) else (batch,)
    call_with(model, inputs)
    return len(inputs[0])


def _emptied(batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return {name: _emptied(value) for name, value in batch.items()}
    if isinstance(batch, tuple | list):
        return tuple(_emptied(value) for value in batch)
    return batch[:0] if isinstance(batch, Tensor) else batch
