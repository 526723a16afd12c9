"""Measures how long exchanges between workers take, and shows them in traces of torch.profiler."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch.profiler import record_function

from syncnorm.norm.native.extension import exchange_clock
from syncnorm.norm.torch_compat import is_profiled

EXCHANGE = "norm::exchange"
"""Name of an exchange in a trace, here and in sync_node.cpp."""

_running: list[ExchangeTimer] = []


class ExchangeTimer:
    """Adds up the time of all exchanges of statistics while `timing` it.

    On a GPU it is the stream's time, from events; `read_s` waits for the device.
    """

    def __init__(self) -> None:
        self._host_s = ctypes.c_double()
        self.address = ctypes.addressof(self._host_s)
        """Of its seconds on the host."""
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
            self._host_s.value += time.perf_counter() - began

    def start(self) -> None:
        """From now on exchanges of this process count for this timer."""
        _running.append(self)
        _set_clock()

    def stop(self) -> None:
        """Exchanges count for the timer that was running before. Does nothing if this one isn't running."""
        if self in _running:
            _running.remove(self)
            _set_clock()

    def read_s(self) -> float:
        """Seconds since the last reading."""
        total_s = self._host_s.value
        for began, ended in self._events:
            ended.synchronize()
            total_s += began.elapsed_time(ended) / 1000
        self._host_s.value, self._events = 0.0, []
        return total_s


@contextmanager
def timing(timer: ExchangeTimer) -> Iterator[None]:
    """Within, exchanges of this process count for `timer`."""
    timer.start()
    try:
        yield
    finally:
        timer.stop()


def _set_clock() -> None:
    exchange_clock.value = _running[-1].address if _running else None


class TracedExchange:
    """Shows an exchange in the trace of torch.profiler, and lets `timer` measure it, if there is one."""

    def __init__(self, timer: ExchangeTimer | None) -> None:
        self._timer = timer

    @contextmanager
    def exchange(self, device: torch.device) -> Iterator[None]:
        with record_function(EXCHANGE), self._timer.exchange(device) if self._timer else nullcontext():
            yield


def current() -> ExchangeTimer | TracedExchange | None:
    """What watches the exchange that begins now; None: nothing does."""
    timer = _running[-1] if _running else None
    return TracedExchange(timer) if is_profiled() else timer
