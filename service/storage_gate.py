"""The reconciler's way to the storage: one that does not answer is not asked for every job anew."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from trainer.files import StorageError

logger = logging.getLogger(__name__)
T = TypeVar("T")

REST_S = 10.0
_REMEMBERED_S = 60.0


class StorageGate:
    """Closed for REST_S after an error, so that a tick waits once for a storage that is away, not once a job."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failed: tuple[float, str] | None = None

    def ask(self, act: Callable[[], T]) -> T:
        """What `act` answers. Raises: StorageError, also without asking."""
        if self._failed is not None and self._clock() - self._failed[0] < REST_S:
            raise StorageError(self._failed[1])
        try:
            answer = act()
        except StorageError as error:
            logger.warning("the storage can't be used", extra={"error": str(error)})
            self._failed = self._clock(), str(error)
            raise
        self._failed = None
        return answer

    @property
    def problem(self) -> str | None:
        """What was wrong when it was last asked, a moment ago."""
        if self._failed is None or self._clock() - self._failed[0] > _REMEMBERED_S:
            return None
        return self._failed[1]
