"""How a tick asks Ray and MLflow: whatever they raise is an error of the port, and silence costs a tick little time."""

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
"""Time of a tick that calls of one port may spend on failing; the rest of the tick goes on without it."""


class BackendCircuitBreaker:
    """Of one thread. Opens when calls have failed for PATIENCE_S, and closes with the next tick."""

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
        """What `act` returns. Raises: BackendError, whatever `act` raises."""
        if self._lost_s[port] > PATIENCE_S:
            raise UnreachableError(f"{port} has not answered for {self._lost_s[port]:.0f} s of this tick")
        began = self._clock()
        try:
            return act()
        except BackendError:
            self._lost_s[port] += self._clock() - began
            raise
        except Exception as error:
            self._lost_s[port] += self._clock() - began
            self._log_once(port, error)
            raise UnexpectedAnswerError(f"{port} was asked in vain: {describe(error)}") from error

    def _log_once(self, port: Backend, error: Exception) -> None:
        """Each kind of error with its traceback, once in the life of the process."""
        where = port, type(error).__name__
        if where not in self._odd:
            self._odd.add(where)
            logger.error("odd answer", extra={"port": port}, exc_info=error)
