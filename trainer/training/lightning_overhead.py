"""What Lightning does at every step that a job has no use for, switched off (lightning 2.6)."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.profilers import Profiler

_NOTHING = nullcontext()


class NoProfiler(Profiler):
    """Lightning's own for no profiling makes a context manager for each of some 150 actions of a step."""

    def start(self, action_name: str) -> None: ...

    def stop(self, action_name: str) -> None: ...

    def profile(self, action_name: str) -> Any:  # noqa: ARG002
        return _NOTHING


def exchange_no_signals(trainer: Trainer) -> None:
    """Have `trainer` not broadcast before each batch whether rank 0 got SIGTERM.

    On a GPU each step would wait for the device by that; and where a rank is gone, the time it takes to find
    out is lost, for the error is swallowed. Training runs in a thread, which gets no
    signals, and ranks/stop_agreement.py agrees on stops.
    """
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _nothing  # type: ignore[method-assign]


def _nothing() -> None: ...
