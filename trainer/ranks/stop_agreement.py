"""Agreement of all ranks during training: whether to stop, and at which step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist

from syncnorm.trainer.contract.protocol import StopRequest
from syncnorm.trainer.errors import SupersededError

_CODES: dict[StopRequest, int] = {"resize": 1, "cancel": 2, "pause": 3, "deadline": 4, "preempt": 5}
_SUPERSEDED = 6
_NAMES = {code: name for name, code in _CODES.items()}
EVERY_S = 0.02
"""How long a request waits for the next exchange, where batches are shorter. An exchange costs 0.1 ms."""
MOST_WITHOUT = 8
"""Batches without an exchange in a row, lest a request waits long once they take longer."""


class StopAgreement:
    """Agrees on a request: every rank sends the code of its request, and the highest wins, at the same step everywhere.

    The exchange begins before a batch and is read after it, so that the batch hides it. Each rank sends, too, how many
    batches fit into EVERY_S, and the lowest number of them goes without an exchange. It has a process group of its own
    on gloo: on GPUs it must not queue behind NCCL or make the host wait for the device. timeout_s: how long a rank
    waits for the others' numbers; where gradients accumulate, they are all that ranks exchange.
    """

    def __init__(
        self, requested: Callable[[], StopRequest | None], superseded: Callable[[], bool], *, timeout_s: float
    ) -> None:
        self._requested = requested
        self._superseded = superseded
        timeout = timedelta(seconds=timeout_s)
        self._group = dist.new_group(backend="gloo", timeout=timeout) if dist.is_initialized() else None
        self._sent = torch.zeros(2, dtype=torch.int32)
        self._work: dist.Work | None = None
        self._without = self._batches = 0
        self._began_at = -math.inf

    def begin(self) -> None:
        """At the start of a batch, on every rank."""
        if self._batches < self._without:
            self._batches += 1
            return
        now = time.monotonic()
        batch_s = (now - self._began_at) / (self._batches + 1)
        self._batches, self._began_at = 0, now
        fitting = min(int(EVERY_S / batch_s), MOST_WITHOUT) if self._group is not None else 0
        self._sent = torch.tensor([self._own_code(), -fitting], dtype=torch.int32)
        if self._group is not None:
            self._work = dist.all_reduce(self._sent, op=dist.ReduceOp.MAX, group=self._group, async_op=True)

    def agreed(self) -> StopRequest | None:
        """The result of the last exchange.

        Raises: SupersededError on every rank if any of them heard that another attempt has taken over.
        """
        if self._work is not None:
            self._work.wait()
            self._work = None
        code, without = self._sent.tolist()
        self._without = -without
        if code == _SUPERSEDED:
            raise SupersededError("another attempt of this job has taken over")
        return _NAMES.get(code)

    def _own_code(self) -> int:
        if self._superseded():
            return _SUPERSEDED
        requested = self._requested()
        return _CODES[requested] if requested else 0
