"""The parts of a user's LightningModule that training uses: training_step, forward, configure_optimizers.

It is wrapped in the trainer's own module, which does the rest: validation (forward must give class scores), epochs,
checkpoints. Its validation_step is called for what it logs, see user_metrics.py; its other hooks are not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from syncnorm.trainer.data.loader import Batch


def require_automatic(own: LightningModule) -> None:
    """Raises: ValueError if `own` steps its optimizers itself."""
    if not own.automatic_optimization:
        raise ValueError(
            f"model.class_path: {type(own).__name__} must leave optimizer steps to the trainer, but it sets "
            "automatic_optimization = False. Return the loss from training_step instead."
        )


def training_loss(own: LightningModule, batch: Batch, batch_idx: int) -> Tensor:
    """The mean loss that own.training_step gives for a worker's part of a batch; 0 with a graph for an empty part.

    Raises: ValueError if it gives no loss.
    """
    if len(batch.y) == 0:
        nothing: Tensor = own(batch.x).sum() * 0.0
        return nothing
    result = own.training_step(batch.data, batch_idx)
    loss = result.get("loss") if isinstance(result, Mapping) else result
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise ValueError(
            f"model.class_path: {type(own).__name__}.training_step must return a loss, one number in a tensor, or a "
            f"dict that has it under 'loss'; got {type(result).__name__}."
        )
    return loss.squeeze()


@contextmanager
def unlogged(own: LightningModule) -> Iterator[None]:
    """Within the block, own.log and own.log_dict do nothing: Lightning would add their values to the epoch's means."""
    names = ("log", "log_dict")
    before = {name: vars(own)[name] for name in names if name in vars(own)}
    vars(own).update(dict.fromkeys(names, _log_nothing))
    try:
        yield
    finally:
        for name in names:
            del vars(own)[name]
        vars(own).update(before)


def has_validation_step(own: LightningModule) -> bool:
    return type(own).validation_step is not LightningModule.validation_step


def own_optimizers(own: LightningModule) -> OptimizerLRScheduler:
    """The optimizers of own.configure_optimizers; None if `own` does not define it, so that the spec's is used."""
    if type(own).configure_optimizers is LightningModule.configure_optimizers:
        return None
    return own.configure_optimizers()


def _log_nothing(*_: object, **__: object) -> None: ...
