"""Calls Ray and MLflow for a tick: every exception becomes a BackendError, and an outage costs a tick little time."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Literal, TypeVar

from syncnorm.service.backend_errors import BackendError, UnexpectedAnswerError, UnreachableError
from syncnorm.service.reconciler.isolation import describe

logger = logging.getLogger(__name__)
T = TypeVar("T")

Backend = Literal["ray", "mlflow"]
PATIENCE_S = 5.0
"""Time that failing calls of one port may take in a tick; the rest of the tick skips that port."""


class BackendCircuitBreaker:
    """Used by one thread. Opens when calls have failed for PATIENCE_S, and closes with the next tick."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lost_s: dict[Backend, float] = defaultdict(float)
        self._odd: set[tuple[Backend, str]] = set()

    def begin_tick(self) -> None:
        self._lost_s.clear()

    @property
    def lost_s(self) -> float:
        """Spent in this tick on calls that failed."""
        return sum(self._lost_s.values())

    def ask(self, port: Backend, act: Callable[[], T]) -> T:
        """The result of `act`. Raises: BackendError for whatever `act` raises."""
        if self._lost_s[port] > PATIENCE_S:
            raise UnreachableError(
                f"{port} has not answered for {self._lost_s[port]:.0f} s of this tick, so it is not asked again "
                "before the next"
            )
        began = self._clock()
        try:
            return act()
        except BackendError:
            self._lost_s[port] += self._clock() - began
            raise
        except Exception as error:
            self._lost_s[port] += self._clock() - began
            self._log_once(port, error)
            raise UnexpectedAnswerError(f"{port} gave no usable answer: {describe(error)}") from error

    def _log_once(self, port: Backend, error: Exception) -> None:
        """Log each kind of error with its traceback, once in the life of the process."""
        where = port, type(error).__name__
        if where not in self._odd:
            self._odd.add(where)
            logger.error(
                "unexpected error from Ray or MLflow; counts as an outage, and is logged once",
                extra={"port": port},
                exc_info=error,
            )
