"""Freezes the parameters that are unfrozen later, and unfreezes them at their moment."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from syncnorm.trainer.training.conversion import ConvertedNorms
from syncnorm.trainer.training.parameters.freezing import FrozenPart, require_frozen, require_optimized

logger = logging.getLogger(__name__)


class FrozenParameters(Callback):
    """The moment depends on finished epochs and steps alone, so it is the same on every rank and in every attempt.

    Optimizers have these parameters from the start, which without gradients changes nothing. So their groups, states
    and schedules resume as ever. DDP follows what is trained, see ReplicaStrategy. Comes after BeforeFirstStep, which
    shows the network as it will be trained.
    """

    def __init__(self, norms: ConvertedNorms) -> None:
        self._norms = norms
        self._frozen: list[FrozenPart] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        later = [part for part in self._norms.frozen if part.rule.unfreeze_at is not None]
        optimized = (p for optimizer in trainer.optimizers for group in optimizer.param_groups for p in group["params"])
        require_optimized(later, optimized, f"{type(pl_module).__name__}.configure_optimizers")
        due = set(map(id, self._due(trainer, later)))
        for part in later:
            if id(part) not in due:
                part.freeze()
        self._frozen = [part for part in self._norms.frozen if id(part) not in due]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        require_frozen(self._frozen)
        for part in list(self._due(trainer, self._frozen)):
            part.unfreeze()
            self._frozen.remove(part)
            logger.info("unfrozen after %s: %s", part.rule.unfreeze_at, part.rule.match)

    @staticmethod
    def _due(trainer: Trainer, parts: list[FrozenPart]) -> Iterator[FrozenPart]:
        for part in parts:
            moment = part.rule.unfreeze_at
            if moment is not None and moment.is_over(trainer.current_epoch, trainer.global_step):
                yield part
