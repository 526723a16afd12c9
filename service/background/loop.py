"""Background loops and their health. A failed tick is counted and retried, and a loop never dies quietly."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

from syncnorm.service.backend_errors import BackendError
from syncnorm.service.background.outage_log import OutageLog
from syncnorm.trainer.errors import StorageError

logger = logging.getLogger(__name__)

UNHEALTHY_AFTER = 3
"""Failed ticks in a row after which a loop counts as failing."""
STUCK_S = 120.0
"""A tick that takes longer loses its lease, so that a standby replica can take over."""


class StoppedError(Exception):
    """Ends a tick early because the service is stopping. Not a failure."""


class Health:
    """Counts the failures of one loop's ticks. Written by the loop's thread, read by any."""

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = name
        self._clock = clock
        self._succeeded_at = clock()
        self._began_at: float | None = None
        self.failed = 0
        """Failed ticks since the start of the process."""
        self.in_a_row = 0
        self.failing_since: datetime | None = None
        self.error = ""
        """The latest error of the failures in a row."""

    @contextmanager
    def tick(self) -> Iterator[None]:
        """Wrap one tick. Exceptions are counted and passed on to the caller."""
        self._began_at = self._clock()
        try:
            yield
        except StoppedError:
            raise
        except Exception as error:
            self._note_failure(error)
            raise
        else:
            self._note_success()
        finally:
            self._began_at = None

    def _note_failure(self, error: Exception) -> None:
        self.failed += 1
        self.in_a_row += 1
        self.failing_since = self.failing_since or datetime.now(UTC)
        self.error = f"{type(error).__name__}: {error}".splitlines()[0][:400]

    def _note_success(self) -> None:
        if self.in_a_row:
            logger.info("loop recovered", extra={"loop": self.name, "failed_ticks": self.in_a_row})
        self.in_a_row, self.failing_since, self.error = 0, None, ""
        self._succeeded_at = self._clock()

    def since_success_s(self) -> float:
        return self._clock() - self._succeeded_at

    @property
    def is_stuck(self) -> bool:
        """Whether the current tick has taken too long."""
        began_at = self._began_at
        return began_at is not None and self._clock() - began_at > STUCK_S

    @property
    def is_good(self) -> bool:
        return self.in_a_row < UNHEALTHY_AFTER and not self.is_stuck


class Loop:
    """Calls `tick` on a thread of its own until it is stopped.

    rest_s: pause between two ticks. first_rest_s: pause before the first. wake: ends a pause early. leave: called once,
    by the loop's thread, at the end. health: if `tick` updates it itself; None: the loop does.
    """

    def __init__(
        self,
        name: str,
        tick: Callable[[], None],
        rest_s: Callable[[], float],
        *,
        wake: threading.Event | None = None,
        leave: Callable[[], None] | None = None,
        health: Health | None = None,
        first_rest_s: float = 0.0,
    ) -> None:
        self.health = health or Health(name)
        self._own_health = health is None
        self._tick = tick
        self._rest_s = rest_s
        self._first_rest_s = first_rest_s
        self._wake = wake or threading.Event()
        self._leave = leave
        self._outage_log = OutageLog(logger)
        self._thread = threading.Thread(target=self.run, name=name, daemon=True)
        self.stopping = threading.Event()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ask it to end after the current item."""
        self.stopping.set()
        self._wake.set()

    def join(self, timeout_s: float) -> bool:
        """Whether it has ended within `timeout_s`."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def run(self) -> None:
        self.stopping.wait(self._first_rest_s)
        while not self.stopping.is_set():
            self._once()
            self._wake.wait(self._rest_s())
            self._wake.clear()
        self.leave()

    def _log_failure(self) -> None:
        """The first failure in a row with its traceback, then the second, fourth, eighth, … in a line."""
        about = {"loop": self.health.name, "in_a_row": self.health.in_a_row}
        if self.health.in_a_row <= 1:
            logger.exception("tick failed; retrying on the next tick", extra=about)
        elif self.health.in_a_row.bit_count() == 1:
            logger.error("tick still fails; retrying on the next tick", extra=about | {"error": self.health.error})

    def leave(self) -> None:
        """Release what the loop holds, such as its lease, even if a tick is still running, so that others can take
        it."""
        if self._leave is None:
            return
        try:
            self._leave()
        except BackendError as error:
            logger.warning(
                "lease not released, since the database is away; it expires by itself",
                extra={"loop": self.health.name, "error": str(error)},
            )
        except Exception:
            logger.exception(
                "could not release what a stopping loop holds, such as its lease", extra={"loop": self.health.name}
            )

    def _once(self) -> None:
        try:
            if self._own_health:
                with self.health.tick():
                    self._tick()
            else:
                self._tick()
        except StoppedError:
            return
        except (BackendError, StorageError) as error:
            self._outage_log.failed(
                "tick", "loop blocked by an outage; retrying on the next tick", loop=self.health.name, error=str(error)
            )
        except BaseException:
            # Also SystemExit from a library, which would end the thread silently.
            self._log_failure()
        else:
            self._outage_log.recovered("tick")


STOP_S = 2.0
"""Time for all loops together to end."""


def stop_all(loops: Sequence[Loop]) -> None:
    """End loops after their current items. A loop that is stuck is abandoned: the next process repeats its work, and
    its lease is released at once."""
    for loop in loops:
        loop.stop()
    until = time.monotonic() + STOP_S
    stuck = [loop for loop in loops if not loop.join(max(0.0, until - time.monotonic()))]
    for loop in stuck:
        logger.warning(
            "loop did not stop in time; the service exits without waiting for it", extra={"loop": loop.health.name}
        )
        leaving = threading.Thread(target=loop.leave, name=f"leave-{loop.health.name}", daemon=True)
        leaving.start()
        leaving.join(STOP_S / 4)
