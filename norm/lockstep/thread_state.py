"""What torch and Python keep for each thread, carried over to another one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from contextvars import copy_context
from typing import TypeVar

import torch

from syncnorm.norm.torch_compat import saved_tensors_hooks

T = TypeVar("T")


class ThreadState:
    """This thread's gradient mode, autocast, device and stream, hooks on saved tensors, and context variables."""

    def __init__(self) -> None:
        self._variables = copy_context()
        self._modes = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
        self._caches = torch.is_autocast_cache_enabled()
        on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        self._autocast = [
            (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
            for kind in ("cpu", *(("cuda",) if on_gpu else ()))
        ]
        self._stream = torch.cuda.current_stream() if on_gpu else None
        self._hooks = saved_tensors_hooks()

    def run(self, function: Callable[[], T]) -> T:
        """The result of `function` in the calling thread, under this state."""
        return self._variables.run(self._run, function)

    def _run(self, function: Callable[[], T]) -> T:
        is_inference, has_gradients = self._modes
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(is_inference))
            stack.enter_context(torch.set_grad_enabled(has_gradients))
            if self._stream is not None:
                stack.enter_context(torch.cuda.stream(self._stream))  # and its device
            for kind, dtype, is_enabled in self._autocast:
                stack.enter_context(torch.autocast(kind, dtype, is_enabled, self._caches))
            if self._hooks is not None:
                stack.enter_context(torch.autograd.graph.saved_tensors_hooks(*self._hooks))
            return function()
