"""Switches off what Lightning does without use for a job (lightning 2.6)."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.profilers import Profiler

_NOTHING = nullcontext()
_HOOKS_OF_A_STEP = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)


class NoProfiler(Profiler):
    """A profiler that does nothing: Lightning's own makes a context manager for each of some 150 actions of a step."""

    def start(self, action_name: str) -> None: ...

    def stop(self, action_name: str) -> None: ...

    def profile(self, action_name: str) -> Any:  # noqa: ARG002
        return _NOTHING


def skip_empty_hooks(callbacks: Iterable[Callback]) -> None:
    """Keep Lightning from calling the hooks of a step that `callbacks` leave empty, some 50 calls a step for ours: it
    skips a hook that can't be called."""
    for callback in callbacks:
        for name in _HOOKS_OF_A_STEP:
            if getattr(type(callback), name) is getattr(Callback, name):
                setattr(callback, name, None)


def exchange_no_signals(trainer: Trainer) -> None:
    """Keep `trainer` from broadcasting before each batch whether rank 0 got SIGTERM.

    On a GPU each step would wait for the device; and if a rank is gone, the time to find out is lost, because the error
    is swallowed. Training runs in a thread, which gets no signals, and ranks/stop_agreement.py agrees on stops.
    """
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _nothing  # type: ignore[method-assign]


def ignore_advice(*, is_partly_frozen: bool = False) -> None:
    """Leave out Lightning's warnings about what a job does in another way.

    is_partly_frozen: layers are in eval mode because model.freeze says so.
    """
    frozen = (r"Found \d+ module\(s\) in eval mode at the start of training",) if is_partly_frozen else ()
    for message in (
        *frozen,
        r"It is recommended to use `self.log\(",  # logged_metrics.py averages over the ranks
        r"The number of training batches \(\d+\) is smaller than the logging interval",
        r"You passed in a `val_dataloader` but have no `validation_step`",
    ):
        warnings.filterwarnings("ignore", message=message)


def _nothing() -> None: ...
