"""Calls that a captured step leaves to the host: what it logs, and what its metrics count."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.utils._pytree import tree_map_only
from torchmetrics import Metric

from syncnorm.trainer.training.task_module import TaskModule


class UnsuitedError(RuntimeError):
    """The step does what a graph can't repeat."""


class Call(NamedTuple):
    """One call of the step. Its tensors have new values after each replay."""

    method: Callable[..., object]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@contextmanager
def deferred_calls(module: LightningModule) -> Iterator[list[Call]]:
    """Within, what `module` logs and counts is noted instead of done.

    Raises: UnsuitedError, in the call, if a graph can't give the value that it needs.
    """
    calls: list[Call] = []
    with ExitStack() as stack:
        stack.enter_context(_replaced(module, "log", partial(_note_log, calls, module.log)))
        for counter in _counters(module):
            stack.enter_context(_replaced(counter, "update", partial(_note, calls, counter.update)))
            if isinstance(counter, Metric):
                stack.enter_context(_replaced(counter, "forward", partial(_refuse, type(counter).__name__)))
        yield calls


def _counters(module: LightningModule) -> list[Any]:
    if isinstance(module, TaskModule):
        return [module.training_scores]
    return [part for part in module.modules() if isinstance(part, Metric)]


def repeat(calls: Sequence[Call], module: LightningModule) -> None:
    """Do what was noted, with the values of now. Others may keep them, so they get copies."""
    before, module._current_fx_name = module._current_fx_name, "training_step"
    try:
        for call in calls:
            args, kwargs = tree_map_only(Tensor, torch.clone, (call.args, call.kwargs))
            call.method(*args, **kwargs)
    finally:
        module._current_fx_name = before


def _note(calls: list[Call], method: Callable[..., object], *args: Any, **kwargs: Any) -> None:
    calls.append(Call(method, *tree_map_only(Tensor, Tensor.detach, (args, kwargs))))


def _note_log(calls: list[Call], log: Callable[..., object], name: str, value: Any, *args: Any, **kwargs: Any) -> None:
    if not isinstance(value, Tensor | Metric):
        raise UnsuitedError(
            f"training_step logs {name} as a number of Python, which would stay the same. Log a tensor instead"
        )
    _note(calls, log, name, value, *args, **kwargs)


def _refuse(name: str, *_: Any, **__: Any) -> None:
    raise UnsuitedError(
        f"training_step calls the metric {name} for its value of the batch. Call its update instead, and log the metric"
    )


@contextmanager
def _replaced(owner: Any, name: str, method: Callable[..., object]) -> Iterator[None]:
    """Within, `owner` has `method` under this name."""
    own = vars(owner).get(name)
    vars(owner)[name] = method
    try:
        yield
    finally:
        if own is None:
            del vars(owner)[name]
        else:
            vars(owner)[name] = own
