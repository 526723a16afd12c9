"""State of one rank alone, for a checkpoint: its random generators and loaders, its own statistics, its counts of the
epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torchmetrics import Metric

from syncnorm.trainer.random_state import random_state
from syncnorm.trainer.ranks.replica_check import local_statistics
from syncnorm.trainer.training.logged_metrics import add_sums, sums_of
from syncnorm.trainer.training.task_module import TaskModule, network_of


def rank_state(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    """The state of this rank, in plain values and tensors."""
    tensors = network_of(module).state_dict()
    in_epoch = trainer._logger_connector._first_loop_iter is not None  # what Lightning resets at its end is over then
    return {
        "random": random_state(),
        "loaders": [] if (loaders := trainer.fit_loop._combined_loader) is None else loaders._state_dicts(),
        "statistics": {name: tensors[name].cpu() for name in sorted(local_statistics(network_of(module)))},
        "counts": module.counts() if isinstance(module, TaskModule) else {},
        "metrics": {
            path: _state_of(metric)
            for path, metric in _metrics_of(module)
            if in_epoch or not _is_reset_by_lightning(metric, trainer)
        },
        "logged": {key: sums_of(metric) for key, metric in _logged(trainer)} if in_epoch else {},
    }


def restore(state: dict[str, Any], trainer: Trainer, module: LightningModule) -> None:
    """Continue on a rank as the one that had `state` would have, but for random numbers and loaders."""
    restore_statistics(module, state["statistics"])
    if isinstance(module, TaskModule):
        module.restore_counts(state["counts"])
    for path, metric in _metrics_of(module):
        if path in state["metrics"]:
            _restore_metric(metric, state["metrics"][path])
    _count_when_logged(trainer, state["logged"])


def restore_statistics(module: LightningModule, statistics: dict[str, Any]) -> None:
    network_of(module).load_state_dict(statistics, strict=False)


def adopt(states: list[dict[str, Any]], module: LightningModule) -> None:
    """Take over the counts of ranks of another world size. Metrics of a user's module count from here on alone."""
    if isinstance(module, TaskModule):
        module.adopt_counts([state["counts"] for state in states])


def _metrics_of(module: LightningModule) -> Iterator[tuple[str, Metric]]:
    return ((path, child) for path, child in module.named_modules() if isinstance(child, Metric))


def _is_reset_by_lightning(metric: Metric, trainer: Trainer) -> bool:
    loop = trainer.fit_loop.epoch_loop
    logged = [*loop._results.values(), *loop.val_loop._results.values()]
    return any(not each.is_tensor and each.value is metric for each in logged if hasattr(each, "value"))


def _state_of(metric: Metric) -> dict[str, Any]:
    state = {name: value.cpu() if isinstance(value, torch.Tensor) else value for name, value in _states(metric)}
    return {"updates": metric._update_count, "state": state}


def _states(metric: Metric) -> Iterator[tuple[str, Any]]:
    for name in metric._defaults:
        value = getattr(metric, name)
        yield name, [each.detach().cpu() for each in value] if isinstance(value, list) else value.detach()


def _restore_metric(metric: Metric, state: dict[str, Any]) -> None:
    for name, value in state["state"].items():
        moved = [each.to(metric.device) for each in value] if isinstance(value, list) else value.to(metric.device)
        setattr(metric, name, moved)
    metric._update_count, metric._computed = state["updates"], None


def _logged(trainer: Trainer) -> Iterator[tuple[str, Any]]:
    """What Lightning sums up over the epoch so far."""
    for key, metric in (trainer._results or {}).items():
        if metric.is_tensor and not metric.has_reset and metric.meta.on_epoch:
            yield key, metric


def _count_when_logged(trainer: Trainer, earlier: dict[str, Any]) -> None:
    """Add the sums of before to a value once it is logged again: only then Lightning has a place for it."""
    results = trainer.fit_loop.epoch_loop._results
    pending = dict(earlier)
    update = results.update_metrics

    def add(key: str, value: Any, batch_size: int) -> None:
        update(key, value, batch_size)
        if key in pending:
            add_sums(results[key], pending.pop(key))

    results.update_metrics = add  # type: ignore[method-assign]
    reset = results.reset

    def forget(metrics: bool | None = None, fx: str | None = None) -> None:
        if metrics is None and fx is None:  # the epoch ends
            pending.clear()
        reset(metrics, fx)

    results.reset = forget  # type: ignore[method-assign]
