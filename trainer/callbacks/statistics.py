"""The running statistics of every normalization layer over time: numbers for MLflow, tensors for a closer look."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from safetensors.torch import save

from syncnorm.norm import NormSnapshot, observe, snapshot
from syncnorm.trainer.callbacks.statistics_alerts import StatisticsAlarm
from syncnorm.trainer.contract.spec import Every
from syncnorm.trainer.reporting.metric_spool import Spool, layer_metric
from syncnorm.trainer.storage.atomic_files import write_atomic
from syncnorm.trainer.training.task_module import network_of


class StatisticsRecorder(Callback):
    """Every `every`: `norm/{layer}/…` metrics and `norm/statistics/step-{n}.safetensors`, from rank 0.

    The batch before a record is observed, so that the drift between its statistics and the running ones is known. This
    one batch costs another pass over each layer's input. The alarm checks every record. Frozen layers are in the file,
    with `frozen` for their count of batches, and have no metrics: a line that never moves tells nothing.
    """

    def __init__(self, artifacts: Path, spool: Spool, alarm: StatisticsAlarm, *, every: Every) -> None:
        self._folder = artifacts / "norm" / "statistics"
        self._spool = spool
        self._alarm = alarm
        self._every = every
        self._observing = ExitStack()
        self._recorded_at = -1

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.is_global_zero and self._ends_a_period(trainer):
            self._observing.enter_context(observe(network_of(pl_module)))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.is_global_zero and self._ends_a_period(trainer, done=True):
            self._observing.close()
            self._record(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._observing.close()

    def state_dict(self) -> dict[str, Any]:
        return self._alarm.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._alarm.load_state_dict(state_dict)

    def _ends_a_period(self, trainer: Trainer, *, done: bool = False) -> bool:
        """Whether this batch is the last before a record. done: its step is counted in global_step already."""
        if self._every.epochs:
            return trainer.is_last_batch and (trainer.current_epoch + 1) % self._every.epochs == 0
        assert self._every.steps
        if trainer.fit_loop._should_accumulate():
            return False
        return (trainer.global_step + (0 if done else 1)) % self._every.steps == 0

    def _record(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = trainer.global_step
        if step == self._recorded_at:
            return
        self._recorded_at = step
        network = network_of(pl_module)
        layers = snapshot(network)
        if layers:
            self._spool.append(_metrics(layers), step)
            self._alarm.check(layers, lambda path: getattr(network.get_submodule(path), "eps", 1e-5), step)
            tensors = {
                f"{path}.{name}": getattr(layer, name).contiguous()
                for path, layer in layers.items()
                for name in ("running_mean", "running_var")
            }
            counts = {
                path: "frozen" if layer.frozen else str(layer.num_batches_tracked) for path, layer in layers.items()
            }
            write_atomic(self._folder / f"step-{step}.safetensors", save(tensors, metadata=counts))


def _metrics(layers: dict[str, NormSnapshot]) -> dict[str, float]:
    found: dict[str, float] = {}
    for path, layer in layers.items():
        if layer.frozen:
            continue
        found[layer_metric(path, "running_mean_abs")] = layer.running_mean_abs
        found[layer_metric(path, "running_var_mean")] = layer.running_var_mean
        if layer.drift is not None:
            found[layer_metric(path, "drift")] = layer.drift
    return {name: value for name, value in found.items() if torch.isfinite(torch.tensor(value))}
