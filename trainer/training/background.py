"""One background task alongside training, in a thread of its own, awaited before the next one starts."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

logger = logging.getLogger(__name__)


class BackgroundTasks:
    """Runs tasks in order, one at a time; after its block none is running.

    is_threaded: in a thread; else at once, in the caller's.
    """

    def __init__(self, *, is_threaded: bool) -> None:
        self._executor = ThreadPoolExecutor(1, "beside-training") if is_threaded else None
        self._under_way: Future[None] | None = None

    def do(self, act: Callable[[], None]) -> None:
        """Start `act` after the previous task has ended. Raises: the error of that one."""
        self.finish()
        if self._executor is None:
            act()
        else:
            self._under_way = self._executor.submit(act)

    def finish(self) -> None:
        """Wait. Raises: what `act` raised, once."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.finish()
        except Exception as missed:
            if error is None:
                raise
            logger.warning("a background task failed too when training ended: %s", missed)
        finally:
            if self._executor is not None:
                self._executor.shutdown()
