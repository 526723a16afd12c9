"""Threads that stay for the next step: a new one would begin with empty caches of convolutions and of memory."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue

_idle: deque[Worker] = deque()
_MOST_IDLE = 32
"""Each has a pool of threads for operators, too."""


def idle_worker() -> Worker:
    """One that has nothing to do, or a new one."""
    try:
        return _idle.pop()
    except IndexError:
        return Worker()


class Worker:
    """A thread for one job after the other.

    sequence_number: of the next node of a graph that it makes; see torch_compat.
    """

    def __init__(self) -> None:
        self.sequence_number = 0
        self._jobs: SimpleQueue[Callable[[], None]] = SimpleQueue()
        threading.Thread(target=self._work, name="lockstep", daemon=True).start()

    def run(self, job: Callable[[], None]) -> None:
        """Let `job`, which must not raise, run. The worker is idle again after it."""
        self._jobs.put(job)

    def _work(self) -> None:
        while True:
            self._jobs.get()()  # no name of its own would keep what the job holds
            if len(_idle) >= _MOST_IDLE:
                return
            _idle.append(self)


os.register_at_fork(after_in_child=_idle.clear)  # a forked process has no threads but its own
