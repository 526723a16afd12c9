"""What is done once a module is complete, before it is trained."""

from __future__ import annotations

from collections.abc import Callable

from lightning.pytorch import Callback, LightningModule, Trainer

from syncnorm.trainer.random_state import seed_generators
from syncnorm.trainer.training.task_module import TaskModule


class BeforeFirstStep(Callback):
    """Calls `prepare` once module and loaders are ready, on every rank. Comes before all other callbacks.

    From the end of the setup on, before a checkpoint is loaded, each rank draws numbers of its own, such as dropout
    masks. Rank 0 of a user's module goes on with the numbers of plain Lightning.
    """

    def __init__(self, prepare: Callable[[Trainer, LightningModule], None], seed: int) -> None:
        self._prepare = prepare
        self._seed = seed

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_rank or isinstance(pl_module, TaskModule):
            seed_generators(self._seed + 1 + trainer.global_rank)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._prepare(trainer, pl_module)
