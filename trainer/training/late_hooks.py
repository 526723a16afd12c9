"""Calls callbacks after the module's own hooks; Lightning calls them before (lightning 2.6)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lightning.pytorch import Callback, LightningModule, Trainer

from syncnorm.trainer.training.logged_metrics import CommonNames, average_over_ranks, log_within_epoch


class LateCallback(Callback):
    """A callback that is also called once the module's hooks of the start, a batch or an epoch have run.

    A checkpoint must hold what those changed, such as an average of weights, and metrics may be logged there.
    """

    def after_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After the on_train_start of all callbacks and of the module."""

    def after_train_batch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After the on_train_batch_end of all callbacks and of the module."""

    def after_train_epoch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After the on_train_epoch_end of all callbacks and of the module, before schedulers step by epoch."""


def call_late(trainer: Trainer, callbacks: Sequence[LateCallback]) -> None:
    """Let `trainer` call `callbacks` late, in this order, and make logged values those of all ranks.

    Lightning's logger connector is told when the hooks of a batch or an epoch have run, and the strategy's hook is the
    last one of the start, so this hooks in there.
    """
    connector, common_names = trainer._logger_connector, CommonNames()

    def epoch_end_reached(original: Callable[[], None]) -> None:
        original()
        average_over_ranks(trainer)

    def on_epoch_end(original: Callable[[], None]) -> None:
        average_over_ranks(trainer)
        original()
        common_names.update(trainer)
        if trainer.training:
            for callback in callbacks:
                callback.after_train_epoch(trainer, trainer.lightning_module)

    def on_batch_end(original: Callable[[], None]) -> None:
        if trainer.training:
            for callback in callbacks:
                callback.after_train_batch(trainer, trainer.lightning_module)
        original()

    def on_train_start(original: Callable[[], None]) -> None:
        original()
        log_within_epoch(trainer)
        for callback in callbacks:
            callback.after_train_start(trainer, trainer.lightning_module)

    _wrap(trainer.strategy, on_train_start)
    for wrapper in (epoch_end_reached, on_epoch_end, on_batch_end):
        _wrap(connector, wrapper)


def _wrap(owner: object, wrapper: Callable[[Callable[[], None]], None]) -> None:
    original = getattr(owner, wrapper.__name__)
    setattr(owner, wrapper.__name__, lambda: wrapper(original))
