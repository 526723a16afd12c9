"""Which backend computes a call: the fused kernels where they can, the reference composition everywhere else."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from norm.backends import fused, native, reference
from norm.moments import Exchanged

Backend = Literal["reference", "fused"]
BatchNorm = Callable[
    [Tensor, Tensor | None, Tensor | None, float, dist.ProcessGroup | None, nn.Module | None, Exchanged | None],
    tuple[Tensor, Exchanged],
]

_WANTED: ContextVar[str | None] = ContextVar("syncnorm_backend", default=None)


@contextmanager
def use_backend(name: Backend) -> Iterator[None]:
    """Within it, `fused` is preferred or only `reference` used, as SYNCNORM_BACKEND says for a whole process."""
    token = _WANTED.set(name)
    try:
        yield
    finally:
        _WANTED.reset(token)


def batch_norm_for(x: Tensor) -> BatchNorm:
    """The implementation for x."""
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None:
        return reference.batch_norm
    wanted = _WANTED.get() or os.environ.get("SYNCNORM_BACKEND", "fused")
    return reference.batch_norm if wanted == "reference" or fused.kernels_for(x) is None else fused.batch_norm


def update_running(
    x: Tensor, exchanged: Exchanged, momentum: float | None, mean: Tensor, var: Tensor, batches: Tensor, bad: Tensor
) -> None:
    """Moves running statistics by what was exchanged for x; see native.update_running."""
    kernels = None if torch.compiler.is_compiling() else fused.kernels_for(x)
    same_kind = mean.device.type == "cpu" and mean.dtype in (torch.float32, torch.float64) and mean.is_contiguous()
    update = kernels.update_running if kernels is not None and same_kind else native.update_running
    update(exchanged.merged, momentum, mean, var, batches, bad)
