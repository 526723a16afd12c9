"""Agreement of all ranks during training: whether to stop, and at which step."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist

from syncnorm.trainer.contract.protocol import StopRequest
from syncnorm.trainer.errors import SupersededError

_CODES: dict[StopRequest, int] = {"resize": 1, "cancel": 2, "pause": 3, "deadline": 4, "preempt": 5}
_SUPERSEDED = 6
_NAMES = {code: name for name, code in _CODES.items()}


class StopAgreement:
    """Agrees on a request: every rank sends the code of its request, and the highest wins, at the same step everywhere.

    The exchange of one number begins before a batch and is read after it, so that the batch hides it. It has a process
    group of its own on gloo: on GPUs it must not queue behind NCCL or make the host wait for the device. timeout_s: how
    long a rank waits for the others' number; where gradients accumulate, it is all that ranks exchange.
    """

    def __init__(
        self, requested: Callable[[], StopRequest | None], superseded: Callable[[], bool], *, timeout_s: float
    ) -> None:
        self._requested = requested
        self._superseded = superseded
        timeout = timedelta(seconds=timeout_s)
        self._group = dist.new_group(backend="gloo", timeout=timeout) if dist.is_initialized() else None
        self._code = torch.zeros(1, dtype=torch.int32)
        self._work: dist.Work | None = None

    def begin(self) -> None:
        self._code.fill_(self._own_code())
        if self._group is not None:
            self._work = dist.all_reduce(self._code, op=dist.ReduceOp.MAX, group=self._group, async_op=True)

    def agreed(self) -> StopRequest | None:
        """The result of the exchange that was begun last.

        Raises: SupersededError on every rank if any of them heard that another attempt has taken over.
        """
        if self._work is not None:
            self._work.wait()
            self._work = None
        code = int(self._code.item())
        if code == _SUPERSEDED:
            raise SupersededError("another attempt of this job has taken over")
        return _NAMES.get(code)

    def _own_code(self) -> int:
        if self._superseded():
            return _SUPERSEDED
        requested = self._requested()
        return _CODES[requested] if requested else 0
