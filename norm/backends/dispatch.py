"""Chooses the backend of a call: the fused kernels where they apply, the reference composition everywhere else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

import torch
from torch import Tensor

from syncnorm.norm.backends import fused, reference
from syncnorm.norm.backends.interface import BatchNorm
from syncnorm.norm.torch_compat import is_inside_functorch

Backend = Literal["reference", "fused"]
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
    if torch.compiler.is_compiling() or is_inside_functorch():
        return reference.batch_norm
    wanted = _WANTED.get() or os.environ.get("SYNCNORM_BACKEND", "fused")
    return reference.batch_norm if wanted == "reference" or fused.kernels_for(x) is None else fused.batch_norm
