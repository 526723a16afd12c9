"""Measures how long exchanges between workers take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_running: list[ExchangeTimer] = []


class ExchangeTimer:
    """Adds up the time of all exchanges of statistics while `timing` it.

    On a GPU it is the stream's time, from events; `read_s` waits for the device.
    """

    def __init__(self) -> None:
        self._host_s = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def exchange(self, device: torch.device) -> Iterator[None]:
        if device.type == "cuda":
            pair = (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))  # type: ignore[no-untyped-call]
            pair[0].record()
            yield
            pair[1].record()
            self._events.append(pair)
        else:
            began = time.perf_counter()
            yield
            self._host_s += time.perf_counter() - began

    def read_s(self) -> float:
        """Seconds since the last reading."""
        total_s = self._host_s
        for began, ended in self._events:
            ended.synchronize()
            total_s += began.elapsed_time(ended) / 1000
        self._host_s, self._events = 0.0, []
        return total_s


@contextmanager
def timing(timer: ExchangeTimer) -> Iterator[None]:
    """Within, exchanges of this process count for `timer`."""
    _running.append(timer)
    try:
        yield
    finally:
        _running.remove(timer)


def current() -> ExchangeTimer | None:
    return _running[-1] if _running else None
