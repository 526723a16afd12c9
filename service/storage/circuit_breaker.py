"""The reconciler's access to the storage: after a failure it is not tried again for every job."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from syncnorm.trainer.errors import StorageError

logger = logging.getLogger(__name__)
T = TypeVar("T")

REST_S = 10.0
_REMEMBERED_S = 60.0


class StorageCircuitBreaker:
    """Closed for REST_S after an error, so that a tick waits only once for an unavailable storage, not once for each
    job."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, check: Callable[[], None] = lambda: None) -> None:
        """check: raises StorageError if the storage is not mounted."""
        self._clock = clock
        self._check = check
        self._was_another = False
        """Whether the check failed last."""
        self._failed: tuple[float, str] | None = None

    def ask(self, act: Callable[[], T]) -> T:
        """The result of `act`. Raises: StorageError, also without calling it."""
        if self._failed is not None and self._clock() - self._failed[0] < REST_S:
            raise StorageError(self._failed[1])
        try:
            self._require_right_one()
            answer = act()
            self._require_right_one()  # a missing file may mean that the whole storage was unmounted
        except StorageError as error:
            self._close(error)
            raise
        self._failed = None
        return answer

    def is_usable(self) -> bool:
        """Whether the storage is mounted and the latest call succeeded."""
        try:
            self._require_right_one()
        except StorageError as error:
            self._close(error)
        return self.problem is None

    def _require_right_one(self) -> None:
        was_another, self._was_another = self._was_another, True
        self._check()
        self._was_another = False
        if was_another:
            self._failed = None

    def _close(self, error: StorageError) -> None:
        logger.warning("storage unavailable; not asked again for 10 s", extra={"error": str(error)})
        self._failed = self._clock(), str(error)

    @property
    def problem(self) -> str | None:
        """The error of the latest call, if it was a moment ago."""
        if self._failed is None or self._clock() - self._failed[0] > _REMEMBERED_S:
            return None
        return self._failed[1]
