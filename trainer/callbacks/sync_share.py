"""How much of a step workers spend exchanging statistics, and which of them the others wait for."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from syncnorm.norm.distributed.timing import ExchangeTimer
from syncnorm.trainer.ranks.exchange import gather
from syncnorm.trainer.reporting import metric_spool as tracking

EVERY_BATCH_ON_CPU = 4
"""Measuring takes 25 microseconds, half a per cent of a step of 5 ms."""
FIRST = 4
"""Batches of an epoch that are measured in any case. The first alone is often unlike the others."""
EVERY_BATCH_ON_GPU = 16
"""On a GPU every 16th batch is measured: reading the time needs two events for each exchange."""
EVERY_BATCH_WITH_GRAPH = 128
"""A batch that is measured is not replayed from a CUDA graph."""


class SyncShare(Callback):
    """Measures, in every epoch, the time in exchanges by the time of the batches they belong to.

    `latest`: of the last epoch, `norm/sync_share` of rank 0. Waiting for slower workers counts, too: it is part of the
    cost of synchronization. Where all ranks exchange with each other, also which one the others wait for, and how long.
    Empty if nothing is exchanged.
    """

    def __init__(self, *, of_all_ranks: bool, every: int | None = None) -> None:
        """of_all_ranks: whether every exchange is one of all ranks. every: how many batches come with one that is
        measured; None: EVERY_BATCH_ON_CPU or EVERY_BATCH_ON_GPU, and each of the FIRST of an epoch."""
        self.latest: dict[str, float] = {}
        self._of_all_ranks = of_all_ranks
        self._every = every
        self._first = 0 if every else FIRST
        self._timer = ExchangeTimer()
        self._exchanges_s = self._batches_s = self._began = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._every = self._every or (EVERY_BATCH_ON_CPU if pl_module.device.type == "cpu" else EVERY_BATCH_ON_GPU)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._exchanges_s = self._batches_s = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx < self._first or batch_idx % (self._every or 1) == 0:
            self._timer.start()
            self._began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._began:
            self._exchanges_s += self._timer.read_s()
            self._batches_s += time.perf_counter() - self._began
            self._stop()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        own = self._exchanges_s / self._batches_s if self._exchanges_s else 0.0
        self.latest = shares_of(gather(own) if self._of_all_ranks else [own])

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        self._timer.stop()
        self._began = 0.0


def shares_of(ranks: Sequence[float]) -> dict[str, float]:
    """The metrics of what each rank spends in exchanges, as a share of its step.

    The slowest rank comes last to each exchange, so it waits for nobody, and spends the least in them. The others spend
    as much more as they wait for it.

    >>> shares_of([0.4, 0.1, 0.4])
    {'norm/sync_share': 0.4, 'norm/slowest_rank': 1, 'norm/waiting_share': 0.3}
    """
    if not all(ranks):
        return {}
    shares = {tracking.SYNC_SHARE: ranks[0]}
    if len(ranks) > 1:
        least = min(ranks)
        shares[tracking.SLOWEST_RANK] = ranks.index(least)
        shares[tracking.WAITING_SHARE] = round((sum(ranks) - len(ranks) * least) / (len(ranks) - 1), 6)
    return shares
