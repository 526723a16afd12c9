"""Threads that stay for the next step: a new one would begin with empty caches of convolutions and of memory."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue

_idle: deque[_Worker] = deque()


def run_in_thread(job: Callable[[], None]) -> None:
    """Let `job`, which must not raise, run in a thread that has nothing to do, or in a new one."""
    try:
        worker = _idle.pop()
    except IndexError:
        worker = _Worker()
    worker.jobs.put(job)


class _Worker:
    def __init__(self) -> None:
        self.jobs: SimpleQueue[Callable[[], None]] = SimpleQueue()
        threading.Thread(target=self._work, name="micro-batch", daemon=True).start()

    def _work(self) -> None:
        while True:
            self.jobs.get()()  # no name of its own would keep what the job holds
            _idle.append(self)


os.register_at_fork(after_in_child=_idle.clear)  # a forked process has no threads but its own
