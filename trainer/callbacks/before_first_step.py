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
        self._is_loader_early = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._is_loader_early = trainer.fit_loop._combined_loader is not None
        if trainer.global_rank or isinstance(pl_module, TaskModule):
            seed_generators(self._seed + 1 + trainer.global_rank)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._is_loader_early and trainer.ckpt_path is not None:
            _restart_pass(trainer)
        self._prepare(trainer, pl_module)


def _restart_pass(trainer: Trainer) -> None:
    """Let the loader continue where the checkpoint says. Lightning forgets to, where configure_optimizers has asked for
    the number of steps, which makes the loaders before the checkpoint is read (lightning 2.6.6)."""
    loop = trainer.fit_loop
    loop._load_combined_loader_states()
    if loop._data_fetcher is not None:
        iter(loop._data_fetcher)
