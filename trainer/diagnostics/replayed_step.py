"""The loss of a training step once more, without a trace in what the step counts and logs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor
from torchmetrics import Metric

from syncnorm.trainer.training.task_module import TaskModule


def uncounted_loss(module: LightningModule, batch: Any, batch_idx: int) -> Tensor:
    """What training_step returns for `batch`. Its logging does nothing, and its metrics are as before afterwards.

    Raises: ValueError if it returns no loss.
    """
    if isinstance(module, TaskModule):
        return module.uncounted_loss(batch)
    with _unlogged(module), _uncounted(module):
        result = module.training_step(batch, batch_idx)
    loss = result.get("loss") if isinstance(result, Mapping) else result
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise ValueError(
            f"diagnostics need {type(module).__name__}.training_step to return a loss, got {type(result).__name__}."
        )
    return loss.squeeze()


@contextmanager
def _unlogged(module: LightningModule) -> Iterator[None]:
    names = ("log", "log_dict")
    before = {name: vars(module)[name] for name in names if name in vars(module)}
    vars(module).update(dict.fromkeys(names, lambda *_, **__: None))
    try:
        yield
    finally:
        for name in names:
            del vars(module)[name]
        vars(module).update(before)


@contextmanager
def _uncounted(module: LightningModule) -> Iterator[None]:
    metrics = [child for child in module.modules() if isinstance(child, Metric)]
    before = [(metric, metric._copy_state_dict(), metric._update_count, metric._computed) for metric in metrics]
    try:
        yield
    finally:
        for metric, state, count, computed in before:
            metric._restore_cache(state)  # type: ignore[operator]
            metric._update_count, metric._computed = count, computed
