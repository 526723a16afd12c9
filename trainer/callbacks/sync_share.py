"""How much of a step workers spend exchanging statistics."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from syncnorm.norm.distributed.timing import ExchangeTimer, timing
from syncnorm.trainer.reporting import metric_spool as tracking
from syncnorm.trainer.reporting.metric_spool import Spool

EVERY_BATCH_ON_GPU = 16
"""On a GPU every 16th batch is measured: reading the time needs two events for each exchange."""


class SyncShare(Callback):
    """`norm/sync_share` of every epoch, from rank 0: time in exchanges by time of the batches they belong to.

    Waiting for slower workers counts, too: it is part of the cost of synchronization. Nothing is reported if nothing is
    exchanged.
    """

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._timer = ExchangeTimer()
        self._timing = ExitStack()
        self._exchanges_s = self._batches_s = self._began = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._exchanges_s = self._batches_s = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.is_global_zero and (pl_module.device.type == "cpu" or batch_idx % EVERY_BATCH_ON_GPU == 0):
            self._timing.enter_context(timing(self._timer))
            self._began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._began:
            self._exchanges_s += self._timer.read_s()
            self._batches_s += time.perf_counter() - self._began
            self._stop()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._exchanges_s:
            self._spool.append({tracking.SYNC_SHARE: self._exchanges_s / self._batches_s}, trainer.global_step)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        self._timing.close()
        self._began = 0.0
