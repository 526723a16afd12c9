"""Averages the weights over training, and lets validation, checkpoints and the export have the average."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from syncnorm.norm import PopulationStatistics
from syncnorm.trainer.callbacks.max_steps import planned_steps
from syncnorm.trainer.contract.spec import TrainSpec
from syncnorm.trainer.random_state import kept_random_state
from syncnorm.trainer.training.averaging.other_averages import require_no_other
from syncnorm.trainer.training.averaging.weight_average import WeightAverage
from syncnorm.trainer.training.late_hooks import LateCallback
from syncnorm.trainer.training.task_module import network_of

logger = logging.getLogger(__name__)

TRAINED = "current_model_state"
AVERAGE = "averaging_state"
"""Where a checkpoint has the weights that training continues with, as Lightning's WeightAveraging names it, and what is
known of the average in its `state_dict`."""

Recompute = Callable[[Trainer], PopulationStatistics | None]


class AveragedWeights(LateCallback):
    """Comes before the callbacks that judge and save.

    The average is updated after each optimizer step, with swa once `from` of training is over. Each validation from
    then on has the average in place, with running statistics recomputed over the training samples; afterwards weights,
    statistics and random numbers of training are as before. A checkpoint has the average as its `state_dict`, so that
    whoever reads one gets it. In the middle of an epoch its statistics are those of training, and `averaging_state`
    says that none were recomputed.
    """

    def __init__(self, train: TrainSpec, recompute: Recompute, check: Callable[[Trainer], None]) -> None:
        """recompute: replaces the running statistics of the network by those of the training samples. check: raises
        ValueError where that is not possible."""
        assert train.average is not None
        self._train, self._spec = train, train.average
        self._recompute = recompute
        self._check = check
        self._average = WeightAverage(self._spec)
        self._steps = 0
        self._facts: dict[str, Any] | None = None
        """From what the statistics of the average were recomputed; None: they are out of date."""
        self._is_in_place = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        require_no_other(trainer, pl_module)
        with kept_random_state():
            self._check(trainer)
        self._steps = trainer.global_step

    def after_train_batch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step > self._steps and self._has_begun(trainer):
            self._average.update(network_of(pl_module))
            self._facts = None
        self._steps = trainer.global_step

    def _has_begun(self, trainer: Trainer) -> bool:
        """Whether `from` of training was over before this step; in epochs, where nobody knows the number of steps."""
        if self._spec.start is None:
            return True
        if (steps := self._train.steps or planned_steps(trainer)) is not None:
            return trainer.global_step - 1 >= self._spec.start * steps
        assert self._train.epochs is not None
        return trainer.current_epoch >= self._spec.start * self._train.epochs

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._put_in_place(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._put_back(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._put_back(pl_module)

    def after_train_epoch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A job without validation gets its statistics here."""
        self._put_in_place(trainer, pl_module)
        self._put_back(pl_module)

    def _put_in_place(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._average.updates:
            return
        network = network_of(pl_module)
        self._average.exchange(network)
        self._is_in_place = True
        if self._facts is None:
            self._average.begin_statistics(network)
            with kept_random_state():
                found = self._recompute(trainer)
            self._facts = {"samples": found.num_samples, "estimator": found.estimator} if found else {}

    def _put_back(self, pl_module: LightningModule) -> None:
        if self._is_in_place:
            self._average.exchange(network_of(pl_module))
            self._is_in_place = False

    def leave_in_place(self, pl_module: LightningModule) -> dict[str, Any] | None:
        """Once training is over: what is known of the average, whose weights are the module's now. None: there is none,
        since training ended before it began."""
        if not self._average.updates:
            return None
        self._average.exchange(network_of(pl_module))
        return self._state()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if not self._average.updates:
            return
        with self._exchanged(pl_module):
            average = {name: _copy(value) for name, value in pl_module.state_dict().items()}
        checkpoint |= {TRAINED: checkpoint["state_dict"], "state_dict": average, AVERAGE: self._state()}

    @contextmanager
    def _exchanged(self, pl_module: LightningModule) -> Iterator[None]:
        self._average.exchange(network_of(pl_module))
        try:
            yield
        finally:
            self._average.exchange(network_of(pl_module))

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Lightning has put the `state_dict` into the module by now."""
        if AVERAGE not in checkpoint:
            return
        state = checkpoint[AVERAGE]
        self._facts = state["statistics"]
        network = network_of(pl_module)
        self._average.adopt(network, updates=state["updates"], has_statistics=self._facts is not None)
        pl_module.load_state_dict(checkpoint[TRAINED], strict=pl_module.strict_loading)

    def _state(self) -> dict[str, Any]:
        return {"kind": self._spec.kind, "decay": self._spec.decay, "from": self._spec.start} | {
            "updates": self._average.updates,
            "statistics": self._facts,
        }


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value
