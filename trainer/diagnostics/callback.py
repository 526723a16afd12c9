"""Takes a job's diagnostics at a few steps, spread evenly over training, without changing training itself."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from syncnorm.trainer.callbacks.checkpoint import between_steps
from syncnorm.trainer.callbacks.max_steps import planned_steps
from syncnorm.trainer.contract.spec import Diagnostic
from syncnorm.trainer.diagnostics import (
    activation_statistics,
    covariate_shift,
    equivalence,
    gradient_histograms,
    landscape,
    pictures,
)
from syncnorm.trainer.diagnostics.probe import Gradient, Probe
from syncnorm.trainer.diagnostics.replayed_step import uncounted_loss
from syncnorm.trainer.diagnostics.undisturbed import Snapshot
from syncnorm.trainer.reporting.metric_spool import Spool, diagnostic_metric
from syncnorm.trainer.storage.atomic_files import write_atomic
from syncnorm.trainer.training.task_module import network_of

logger = logging.getLogger(__name__)

MEASUREMENTS = 12

Record = dict[str, Any]

# Each has measure(probe) -> Record and metrics(record) -> {(layer, name): value}.
_DIAGNOSTICS: dict[Diagnostic, ModuleType] = {
    "gradient_histograms": gradient_histograms,
    "landscape": landscape,
    "covariate_shift": covariate_shift,
    "activation_statistics": activation_statistics,
    "equivalence": equivalence,
}
_PICTURES: dict[Diagnostic, Callable[[list[Record]], bytes]] = {
    "gradient_histograms": pictures.gradient_histograms,
    "landscape": pictures.landscape,
    "covariate_shift": pictures.covariate_shift,
    "activation_statistics": pictures.activation_statistics,
    "equivalence": pictures.equivalence,
}


class Diagnostics(Callback):
    """Measures `names` at MEASUREMENTS steps: metrics to the spool at once, and at the end of training
    `diagnostics/{name}.png` and `{name}.json` in the artifacts, both from rank 0.

    A step is measured once it is over, from copies of the network and of the random state before and after it: nothing
    is hooked into training itself, and afterwards everything is as it was, bit for bit. Every rank takes part. What was
    measured is in the checkpoint, so that a job that was interrupted shows all of it.
    Costs at a measured step, in passes over its batch: one for all, landscape 7 more, covariate_shift one per layer,
    equivalence one more and one over the whole batch.
    steps: of the whole job; None: as many as the loader tells.
    Called after whatever observes a step's own forward pass, and before the checkpoint.
    """

    def __init__(self, names: Sequence[Diagnostic], artifacts: Path, spool: Spool, *, steps: int | None) -> None:
        self._names = tuple(names)
        self._folder = artifacts / "diagnostics"
        self._spool = spool
        self._steps = steps
        self._due: frozenset[int] = frozenset()
        self._start: Snapshot | None = None
        self._given: Gradient = {}
        self._of_one: dist.ProcessGroup | None = None
        self._records: dict[Diagnostic, list[Record]] = {name: [] for name in names}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.world_size > 1 and "equivalence" in self._names:
            self._of_one = dist.new_group([0])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._due = measured_steps(self._steps or planned_steps(trainer))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step in self._due and between_steps(trainer):
            self._start = Snapshot.take(network_of(pl_module))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Before clipping; the gradients of 16-mixed have their true scale here."""
        if self._start is not None and "equivalence" in self._names and trainer.accumulate_grad_batches == 1:
            named = network_of(pl_module).named_parameters()
            self._given = {name: tensor.grad.clone() for name, tensor in named if tensor.grad is not None}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._start is None:
            return
        probe = self._probe(trainer, pl_module, batch, batch_idx)
        self._start, self._given = None, {}
        with probe.undisturbed():
            for name in self._names:
                self._keep(trainer, name, {"step": trainer.global_step, **_DIAGNOSTICS[name].measure(probe)})

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the results here and not in on_train_end, which does not run again for a job that was interrupted
        after its last step."""
        if not trainer.is_global_zero:
            return
        for name, records in self._records.items():
            if records:
                write_atomic(self._folder / f"{name}.json", json.dumps(records).encode())
                write_atomic(self._folder / f"{name}.png", _PICTURES[name](records))
        if proved := self._records.get("equivalence"):
            logger.info("equivalence: %s", equivalence.sentence(proved))

    def state_dict(self) -> dict[str, Any]:
        return {"records": json.dumps(self._records)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._records |= json.loads(state_dict["records"])

    def _probe(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> Probe:
        def loss_of(batch: Any, exactly: bool) -> Tensor:
            with nullcontext() if exactly else trainer.precision_plugin.forward_context():
                return uncounted_loss(module, batch, batch_idx)

        assert self._start is not None
        scaler = getattr(trainer.precision_plugin, "scaler", None)  # of 16-mixed
        return Probe(
            network_of(module),
            batch,
            loss_of,
            start=self._start,
            end=Snapshot.take(network_of(module)),
            lr=base_lr(trainer.optimizers[0]),
            scale=scaler.get_scale() if scaler else 1.0,
            given_to_optimizer=self._given,
            of_one=self._of_one,
        )

    def _keep(self, trainer: Trainer, name: Diagnostic, record: Record) -> None:
        self._records[name].append(finite(record))
        if trainer.is_global_zero:
            values = _DIAGNOSTICS[name].metrics(record)
            self._spool.append({diagnostic_metric(*key): value for key, value in values.items()}, record["step"])


def base_lr(optimizer: Optimizer) -> float:
    """The learning rate that a schedule multiplies, the greatest of all groups: Fixup's scalars have a lower one."""
    return max(float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups)


def measured_steps(steps: int | None, count: int = MEASUREMENTS) -> frozenset[int]:
    """`count` of the steps 0 to steps - 1, evenly spaced, the first and the last among them; where nobody knows how
    many steps there will be, 0, 1, 2, 4, 8 and so on."""
    if steps is None:
        return frozenset({0, *(2**power for power in range(count - 1))})
    if steps <= count:
        return frozenset(range(steps))
    return frozenset(round(i * (steps - 1) / (count - 1)) for i in range(count))


def finite(value: Any) -> Any:
    """`value` with None for every number that JSON has no word for."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
