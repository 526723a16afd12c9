"""Holds the reconciler's lease while a tick acts under it: a thread renews it for as long as a tick may take."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType

from syncnorm.service.background.loop import StoppedError

logger = logging.getLogger(__name__)

LEASE_S = 15.0
BUDGET_S = 120.0
"""A tick that takes longer loses its lease, so that a standby replica can take over."""


class LeaseLostError(Exception):
    """The lease may be another replica's by now, so this tick ends."""


class HeldLease:
    """A context around a tick.

    `check` ends a tick early. What protects the database from a holder that was frozen is the token: each write names
    it, and is refused once another replica holds the lease.
    """

    def __init__(
        self,
        renew: Callable[[], bool],
        stopping: threading.Event,
        *,
        lease_s: float = LEASE_S,
        budget_s: float = BUDGET_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """renew: False if another replica holds the lease."""
        self._renew = renew
        self._stopping = stopping
        self._lease_s = lease_s
        self._budget_s = budget_s
        self._clock = clock
        self._began_at = self._good_since = clock()
        self._lost = ""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def __enter__(self) -> HeldLease:
        self._thread.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self._over.set()

    def check(self) -> None:
        """Call it between two items of a tick. Raises: LeaseLostError, StoppedError if the tick must end."""
        if self._stopping.is_set():
            raise StoppedError
        if not self._lost and self._clock() - self._good_since > self._lease_s:
            self._lost = "could not renew it in time"
        if self._lost:
            raise LeaseLostError(f"this replica lost the reconciler's lease: {self._lost}")

    def seconds(self) -> float:
        """Since the tick began."""
        return self._clock() - self._began_at

    def _keep(self) -> None:
        while not self._over.wait(self._lease_s / 3):
            if self.seconds() > self._budget_s:
                self._lost = f"the tick took longer than {self._budget_s:.0f} s"
                return
            self._renew_once()
            if self._lost:
                return

    def _renew_once(self) -> None:
        asked_at = self._clock()
        try:
            if self._renew():
                self._good_since = asked_at
            elif not self._over.is_set():
                self._lost = "another replica has it now"
        except Exception:
            logger.exception("could not renew the reconciler's lease; retrying")
