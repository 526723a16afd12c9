"""What modules pass to `self.log`: means over all samples of all ranks, and names that all jobs share."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultMetric
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor

from syncnorm.trainer.ranks.exchange import gather
from syncnorm.trainer.reporting.metric_spool import TRAIN_LOSS

Sums = tuple[float, float]
"""(sum of values times samples, samples); for a sum, a greatest or a least value only the first counts."""


def average_over_ranks(trainer: Trainer) -> None:
    """Make the epoch's values those of all ranks. Entered by every rank.

    Without `sync_dist` Lightning leaves each rank with its own, so that a schedule or a callback that monitors one
    drives the ranks apart. A mean counts every sample once, with `sync_dist` too. One that a hook at the end of an
    epoch logs without a batch_size counts by the samples that its rank has read in that pass. Values that only some
    ranks have, and those logged with rank_zero_only, stay.
    """
    if trainer.world_size == 1:
        return
    for metric in _synced_means(trainer):
        _weigh(metric, _samples_of_pass(trainer))
    own = dict(_open_values(trainer))
    everyone = gather({key: sums_of(metric) for key, metric in own.items()})
    read = gather(_samples_of_pass(trainer))
    for key, metric in own.items():
        if all(key in values for values in everyone):
            _put(metric, [values[key] for values in everyone], read)


def log_within_epoch(trainer: Trainer) -> None:
    """Log metrics of steps once an epoch at the least, also where an epoch is shorter than Lightning's interval."""
    if math.isfinite(batches := trainer.num_training_batches):
        steps = math.ceil(batches / trainer.accumulate_grad_batches)
        trainer.log_every_n_steps = max(1, min(trainer.log_every_n_steps, steps))  # type: ignore[attr-defined]


def _samples_of_pass(trainer: Trainer) -> int:
    """What this rank reads in the pass that ends; 1 where its loaders don't tell."""
    if trainer.validating or trainer.sanity_checking:
        loaders = trainer.val_dataloaders
    else:
        loaders = trainer.test_dataloaders if trainer.testing else trainer.train_dataloader
    each = [] if loaders is None else CombinedLoader(loaders).flattened  # not "if loaders": a stream has no length
    orders = [getattr(loader, "order", None) for loader in each]
    counts = [order.own_samples() if order is not None else None for order in orders]
    return sum(filter(None, counts)) if counts and None not in counts else 1


def _open_values(trainer: Trainer) -> Iterator[tuple[str, _ResultMetric]]:
    for key, metric in (trainer._results or {}).items():
        meta = metric.meta
        is_reduced = meta.sync.should or meta.sync.rank_zero_only or not meta.on_epoch
        if metric.is_tensor and not metric.has_reset and not is_reduced:
            yield key, metric


def _synced_means(trainer: Trainer) -> Iterator[_ResultMetric]:
    for metric in (trainer._results or {}).values():
        meta = metric.meta
        if metric.is_tensor and not metric.has_reset and meta.sync.should and meta.on_epoch and meta.is_mean_reduction:
            yield metric


def _weigh(metric: _ResultMetric, read: int) -> None:
    """Let Lightning's own reduction count samples: it averages their number over the ranks as an integer."""
    if "epoch_end" in metric.meta.fx and metric.cumulated_batch_size == 1:
        metric.value, metric.cumulated_batch_size = metric.value * read, metric.cumulated_batch_size * read
    metric.cumulated_batch_size = metric.cumulated_batch_size.to(metric.value.dtype)


def sums_of(metric: _ResultMetric) -> Sums:
    return float(metric.value), float(metric.cumulated_batch_size) if metric.meta.is_mean_reduction else 1.0


def _put(metric: _ResultMetric, of_ranks: list[Sums], read: list[int]) -> None:
    meta = metric.meta
    is_of_epoch = "epoch_end" in meta.fx  # a sum logged there may be of all ranks already
    if len(set(of_ranks)) == 1 or (meta.is_sum_reduction and is_of_epoch):
        return
    if is_of_epoch and meta.is_mean_reduction and all(samples == 1 for _, samples in of_ranks):
        of_ranks = [(value * samples, samples) for (value, _), samples in zip(of_ranks, read, strict=True)]
    values = [value for value, _ in of_ranks]
    if meta.is_mean_reduction:
        count = sum(samples for _, samples in of_ranks)
        metric.cumulated_batch_size = torch.as_tensor(count, device=metric.value.device)
        total = math.fsum(values) if all(map(math.isfinite, values)) else sum(values)
    else:
        total = {"max": max, "min": min}.get(meta.reduce_fx.__name__, sum)(values)
    metric.value = torch.as_tensor(total, dtype=metric.value.dtype, device=metric.value.device)
    metric._computed = None


def add_sums(metric: _ResultMetric, earlier: Sums) -> None:
    """Count what was logged before a resume."""
    value, samples = earlier
    if metric.meta.is_mean_reduction:
        metric.cumulated_batch_size = metric.cumulated_batch_size + int(samples)
    if metric.meta.is_max_reduction or metric.meta.is_min_reduction:
        metric.value = metric.meta.reduce_fx(metric.value, torch.as_tensor(value).to(metric.value))
    else:
        metric.value = metric.value + value


_STAGES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_SCORES = {"loss": "loss", "acc": "accuracy", "accuracy": "accuracy", "dice": "dice", "iou": "mean_iou", "map": "map"}
_COMMON = re.compile(rf"({'|'.join(_STAGES)})[_./-]({'|'.join(_SCORES)})(_epoch)?", re.IGNORECASE)


def common_name(name: str) -> str | None:
    """The name that built-in tasks give such a metric: `val/loss` for val_loss, valid_loss and the like; else None."""
    if (found := _COMMON.fullmatch(name)) is None:
        return None
    return f"{_STAGES[found[1].lower()]}/{_SCORES[found[2].lower()]}"


class CommonNames:
    """Lets schedules and callbacks monitor a module's metrics by the common names, too."""

    def __init__(self) -> None:
        self._added: set[str] = set()

    def update(self, trainer: Trainer) -> None:
        """Give what the module has logged its common names, unless it uses those itself.

        A loss that it logs in training by step alone is that of the last batch of a rank, and stays without one:
        `EpochMetrics` has the mean.
        """
        found = trainer._logger_connector._callback_metrics
        for name in self._added:
            found.pop(name, None)
        of_steps = {one.meta.name for one in trainer.fit_loop.epoch_loop._results.values() if not one.meta.on_epoch}
        common = {
            alias: value
            for name, value in found.items()
            if (alias := common_name(name)) and alias not in found and not (alias == TRAIN_LOSS and name in of_steps)
        }
        found.update(common)
        self._added = set(common)


def as_numbers(metrics: Mapping[str, Tensor | float]) -> dict[str, float]:
    """Those metrics that are single numbers."""
    numbers = {name: value for name, value in metrics.items() if not isinstance(value, Tensor) or value.numel() == 1}
    return {name: float(value) for name, value in numbers.items()}


def is_fork(name: str, found: Mapping[str, object]) -> bool:
    """Whether Lightning made it of a metric that is logged by step and by epoch."""
    return any(name.endswith(end) and name.removesuffix(end) in found for end in ("_step", "_epoch"))
