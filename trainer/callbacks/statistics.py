"""The running statistics of every normalization layer over time: numbers for MLflow, tensors for a closer look."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from safetensors.torch import save

from syncnorm.norm import NormSnapshot, observe, snapshot
from syncnorm.trainer.callbacks.statistics_alerts import StatisticsAlarm
from syncnorm.trainer.contract.mlflow_rest import layer_metric
from syncnorm.trainer.contract.spec import Every
from syncnorm.trainer.reporting import metric_spool as tracking
from syncnorm.trainer.reporting.telemetry.run_facts import RunFacts
from syncnorm.trainer.storage.atomic_files import write_atomic
from syncnorm.trainer.training.task_module import network_of

DRIFT_TAG, VARIANCE_TAG = "syncnorm.worst_layer.drift", "syncnorm.worst_layer.variance"


class StatisticsRecorder(Callback):
    """Every `every`: metrics over all layers and of each, and `norm/statistics/step-{n}.safetensors`, from rank 0.

    The batch before a record is observed, so that the drift between its statistics and the running ones is known. This
    one batch costs another pass over each layer's input. The alarm checks every record. Frozen layers are in the file,
    with `frozen` for their count of batches, and have no metrics: a line that never moves tells nothing. The layers
    behind the largest drift and the smallest variance become tags of the run.
    """

    def __init__(
        self, artifacts: Path, spool: tracking.Spool, facts: RunFacts, alarm: StatisticsAlarm, *, every: Every
    ) -> None:
        self._folder = artifacts / "norm" / "statistics"
        self._spool = spool
        self._facts = facts
        self._alarm = alarm
        self._every = every
        self._observing = ExitStack()
        self._recorded_at = -1
        self._is_first = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._is_first = trainer.is_global_zero  # asked once: Lightning takes some microseconds to answer

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._is_first and self._ends_a_period(trainer):
            self._observing.enter_context(observe(network_of(pl_module)))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._is_first and self._ends_a_period(trainer, done=True):
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
            moving = {path: layer for path, layer in layers.items() if not layer.frozen}
            overall, worst = over_all_layers(moving)
            self._spool.append({**overall, **_of_each_layer(moving)}, step)
            self._facts.tag(worst)
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


def over_all_layers(layers: Mapping[str, NormSnapshot]) -> tuple[dict[str, float], dict[str, str]]:
    """The metrics over all layers, and tags with the layer that each extreme comes from.

    norm/drift/max and norm/drift/median: of the layers' drifts. norm/variance/min: the smallest running variance of any
    channel. Values that are not finite are left out; the alarm tells of them.
    """
    drifts = {path: layer.drift for path, layer in layers.items() if layer.drift is not None}
    variances = {path: float(layer.running_var.min()) for path, layer in layers.items() if layer.running_var.numel()}
    drifts, variances = _finite(drifts), _finite(variances)
    found: dict[str, float] = {}
    worst: dict[str, str] = {}
    if drifts:
        path = max(drifts, key=lambda each: drifts[each])
        found |= {tracking.DRIFT_MAX: drifts[path], tracking.DRIFT_MEDIAN: statistics.median(drifts.values())}
        worst[DRIFT_TAG] = _described(path, drifts[path])
    if variances:
        path = min(variances, key=lambda each: variances[each])
        found[tracking.VARIANCE_MIN] = variances[path]
        worst[VARIANCE_TAG] = _described(path, variances[path])
    return found, worst


def _described(path: str, value: float) -> str:
    return f"{path or 'the network'}: {value:.3g}"


def _of_each_layer(layers: Mapping[str, NormSnapshot]) -> dict[str, float]:
    found: dict[str, float] = {}
    for path, layer in layers.items():
        found[layer_metric(path, "running_mean_abs")] = layer.running_mean_abs
        found[layer_metric(path, "running_var_mean")] = layer.running_var_mean
        if layer.drift is not None:
            found[layer_metric(path, "drift")] = layer.drift
    return _finite(found)


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if math.isfinite(value)}
