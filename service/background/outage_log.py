"""Logs an outage once when it begins and once when it is over, not at every retry."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable


class OutageLog:
    """Used by one thread. clock: seconds, for tests."""

    def __init__(self, logger: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._logger = logger
        self._clock = clock
        self._since: dict[str, float] = {}

    def failed(self, what: str, message: str, /, **about: str) -> None:
        """`what` failed. Logged the first time in a row only."""
        if what not in self._since:
            self._since[what] = self._clock()
            self._logger.warning(message, extra=about)

    def recovered(self, what: str) -> None:
        """`what` works. Logged if it failed before."""
        since = self._since.pop(what, None)
        if since is not None:
            self._logger.info(
                "recovered after an outage", extra={"what": what, "outage_s": round(self._clock() - since, 1)}
            )
