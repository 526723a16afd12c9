"""Chooses the backend of a call: the fused kernels where they apply, the reference composition everywhere else."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import torch
from torch import Tensor

from syncnorm.norm.backends import fused, reference
from syncnorm.norm.backends.arguments import check_request, has_plain_type
from syncnorm.norm.backends.interface import Request
from syncnorm.norm.backends.memory_layout import dense
from syncnorm.norm.statistics.moments import Exchanged, measure_row
from syncnorm.norm.torch_compat import is_in_forward_mode, is_inside_functorch, is_under_dispatch_mode

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


def batch_norm(x: Tensor, request: Request) -> tuple[Tensor, Exchanged]:
    """See interface.BatchNorm. Raises: RuntimeError where a tensor of `request` does not fit x."""
    check_request(x, request)
    has_plain_types = has_plain_type(request.weight) and has_plain_type(request.bias)
    if has_plain_types and chosen_kernels(x) is not None:
        return fused.batch_norm(x, request)
    return reference.batch_norm(x, request)


def local_row(x: Tensor) -> Tensor:
    """This worker's row of x, with the bits that `batch_norm` has for it."""
    kernels = chosen_kernels(x)
    row: Tensor = measure_row(x) if kernels is None else kernels.measure(dense(x))
    return row


def chosen_kernels(x: Tensor) -> Any:
    """The kernels for x; None where something has to see each operation, or where there are none."""
    return fused.kernels_for(x) if may_use_kernels() else None


def may_use_kernels() -> bool:
    """Whether nothing has to see each operation, and nobody asked for the reference composition."""
    if torch.compiler.is_compiling() or is_inside_functorch() or is_in_forward_mode() or is_under_dispatch_mode():
        return False
    return (_WANTED.get() or _wanted_by_process()) != "reference"


@functools.cache
def _wanted_by_process() -> str:
    """Read once, at the first call of a layer: looking a variable up costs a small tensor 1 % of its time."""
    return os.environ.get("SYNCNORM_BACKEND", "fused")
