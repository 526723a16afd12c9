"""Batch normalization of dense tensors on a GPU by the kernels of triton_kernels.py.

Rows are (count, C means, C m2s) in float64, as in cpu_compiled.py. Nothing here waits for the GPU.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar, cast

import torch
from torch import Tensor

from syncnorm.norm.backends.arguments import is_plain
from syncnorm.norm.backends.cpu_aten import update_running
from syncnorm.norm.backends.interface import Request, Running
from syncnorm.norm.backends.memory_layout import layout_of

logger = logging.getLogger(__name__)

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_TILE = 2048  # elements a program holds at a time: 16 for each of its 128 threads
_CHANNELS = 128  # and channels, in kernels over channels alone
_PROGRAMS_PER_MULTIPROCESSOR = 16  # what an H100 runs at once of 128 threads each


def takes(x: Tensor) -> bool:
    """Whether x is on a GPU that Triton can compile for, and of a dtype the kernels know."""
    return x.dtype in _DTYPES and _can_compile(x.device)


_P = ParamSpec("_P")
_R = TypeVar("_R")


def on_its_device(function: Callable[Concatenate[Tensor, _P], _R]) -> Callable[Concatenate[Tensor, _P], _R]:
    """Kernels run on the current device, which must be that of the first argument."""

    @functools.wraps(function)
    def called(x: Tensor, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        if x.device.index == torch.cuda.current_device():
            return function(x, *args, **kwargs)
        with torch.cuda.device(x.device):
            return function(x, *args, **kwargs)

    return called


@on_its_device
def measure(x: Tensor) -> Tensor:
    """The row of this worker's x."""
    C, plan = x.shape[1], _plan(x)
    if x.numel() == 0:
        return torch.zeros(2 * C + 1, dtype=torch.float64, device=x.device)
    rows = torch.empty(plan.splits, 2 * C + 1, dtype=torch.float64, device=x.device)
    _kernels().statistics[plan.groups, plan.splits](x, rows, *plan.sizes, plan.num_tiles, *plan.constants)
    return rows[0] if plan.splits == 1 else _merge(rows, C)


@on_its_device
def finish_forward(x: Tensor, rows_WF: Tensor, request: Request) -> tuple[Tensor, Tensor]:
    """The output and the row of all workers, of which `rows_WF` are the parts; moves the running statistics."""
    C, plan = x.shape[1], _plan(x)
    running = request.running
    in_kernel = running is not None and _can_move(running, C, x.device)
    table = torch.empty(3, C, dtype=plan.table_dtype, device=x.device)
    merged = _merge(rows_WF, C, table, request if in_kernel else request._replace(running=None))
    y = torch.empty_like(x)
    if x.numel():
        _kernels().normalize[plan.num_tiles, plan.groups](x, y, table, *plan.sizes, *plan.constants)
    if running is not None:
        if in_kernel:
            # Autograd must see that they changed, as for any operation in place.
            torch.autograd.graph.increment_version(cast("tuple[Tensor, ...]", running[1:]))
        else:
            update_running(merged, running)
    return y, merged


@on_its_device
def gradient_sums(x: Tensor, dy: Tensor, row: Tensor) -> Tensor:
    """(2C,) of this worker: sums of dy, then of dy * (x - mean)."""
    C, plan = x.shape[1], _plan(x)
    if x.numel() == 0:
        return torch.zeros(2 * C, dtype=torch.float64, device=x.device)
    rows = torch.empty(plan.splits, 2 * C, dtype=torch.float64, device=x.device)
    sizes = (*plan.sizes, plan.num_tiles)
    _kernels().gradient_sums[plan.groups, plan.splits](x, dy, row, rows, *sizes, *plan.constants)
    if plan.splits == 1:
        return rows[0]
    total = torch.empty(2 * C, dtype=torch.float64, device=x.device)
    BR, BC = _merging_block(plan.splits, 2 * C, alone=False)
    _kernels().add_rows[(ceil_div(2 * C, BC),)](rows, total, plan.splits, 2 * C, BR, BC)
    return total


@on_its_device
def finish_backward(
    x: Tensor, dy: Tensor, row: Tensor, local: Tensor, rows_WF: Tensor, eps: float, weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias; `local` are this worker's `gradient_sums`, `rows_WF` everybody's."""
    C, plan = x.shape[1], _plan(x)
    table = torch.empty(4, C, dtype=plan.table_dtype, device=x.device)
    by_weight, by_bias = torch.empty(2, C, dtype=plan.table_dtype, device=x.device).unbind()
    _kernels().gradient_table[(ceil_div(C, _CHANNELS),)](
        row, local, rows_WF, table, flat(weight), by_weight, by_bias, rows_WF.shape[0], C, *two_floats(eps), _CHANNELS
    )
    dx = torch.empty_like(x)
    if x.numel():
        _kernels().differentiate[plan.num_tiles, plan.groups](x, dy, dx, table, *plan.sizes, *plan.constants)
    return dx, by_weight, by_bias


class _Tiling(NamedTuple):
    """How the kernels walk through a tensor; see triton_kernels.py."""

    sizes: tuple[int, int, int]  # A, C, units of VEC elements in the contiguous extent
    num_tiles: int
    groups: int
    splits: int
    table_dtype: torch.dtype
    constants: tuple[Any, ...]  # VEC, BY_ROWS, BA, BB, ACC


def _plan(x: Tensor) -> _Tiling:
    return _plan_of(layout_of(x), x.dtype, _multiprocessors(x.device))


@functools.lru_cache(4096)
def _plan_of(layout: tuple[int, int, int, bool], dtype: torch.dtype, multiprocessors: int) -> _Tiling:
    N, C, L, by_rows = layout
    A, inner = (N * L, C) if by_rows else (N, L)
    BB = min(power_of_two(inner), _CHANNELS if by_rows else _TILE)
    BA = max(1, min(_TILE // BB, power_of_two(A)))
    groups = ceil_div(C, BB) if by_rows else C
    num_tiles = ceil_div(A, BA) * (1 if by_rows else ceil_div(inner, BB))
    wanted = ceil_div(_PROGRAMS_PER_MULTIPROCESSOR * multiprocessors, max(groups, 1))
    splits = max(1, min(wanted, num_tiles // 4))
    VEC = math.gcd(inner, 16)
    table_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    constants = (VEC, by_rows, BA, BB, triton_dtype(table_dtype))
    return _Tiling((A, C, inner // VEC), num_tiles, groups, splits, table_dtype, constants)


def _merge(rows: Tensor, C: int, table: Tensor | None = None, request: Request | None = None) -> Tensor:
    """The row of the union; with a request also what `normalize` reads, and the running statistics moved."""
    R = rows.shape[0]
    merged = torch.empty(2 * C + 1, dtype=torch.float64, device=rows.device)
    weight, bias, eps, running = (None, None, 0.0, None)
    if request is not None:
        weight, bias, eps, running = flat(request.weight), flat(request.bias), request.eps, request.running
    momentum, *buffers = (0.0, *(None,) * 4) if running is None else running
    moves = running is not None  # all of them or none, so one program must see every channel
    BR, BC = _merging_block(R, C, alone=moves)
    _kernels().merge[(1 if moves else ceil_div(C, BC),)](
        rows, merged, table, weight, bias, *buffers, R, C, *two_floats(eps), *two_floats(momentum or 0.0),
        moves, momentum is None, BR, BC, num_warps=8 if BC * BR > _TILE else 4,
    )  # fmt: skip
    return merged


def _merging_block(R: int, columns: int, *, alone: bool) -> tuple[int, int]:
    """Rows and columns that a program merges at a time: wide where one program does all of it."""
    BC = min(power_of_two(columns), 1024 if alone else 32)
    return max(1, min(power_of_two(R), 2 * _TILE // BC)), BC


def flat(tensor: Tensor | None) -> Tensor | None:
    """As the kernels read it: one number after the other."""
    return None if tensor is None else tensor.resolve_neg().contiguous()


def _can_move(running: Running, num_channels: int, device: torch.device) -> bool:
    """Whether the kernel may write to all of them. What it can't, PyTorch's operators do."""
    mean, var, *counters = running[1:]
    return (
        is_plain(mean, *_DTYPES, size=num_channels)
        and is_plain(var, *_DTYPES, size=num_channels)
        and all(is_plain(counter, torch.int64, size=1) for counter in counters)
        and all(buffer is not None and buffer.device == device for buffer in running[1:])
    )


@functools.lru_cache(256)
def two_floats(number: float) -> tuple[float, float]:
    """A float64 as two numbers of float32, the only kind that Triton takes."""
    high = ctypes.c_float(number).value
    return high, number - high


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def _can_compile(device: torch.device) -> bool:
    """Triton must be there, know this GPU and find a C compiler for its launcher. SYNCNORM_KERNELS=0: not wanted."""
    if os.environ.get("SYNCNORM_KERNELS", "1") == "0":
        return False
    rows = torch.zeros(2, 1, dtype=torch.float64, device=device)
    try:
        with torch.cuda.device(device):
            _kernels().add_rows[(1,)](rows, torch.empty_like(rows[0]), 2, 1, 2, 1)
    except Exception as error:  # whatever kind a missing or broken part of the tool chain raises
        logger.warning("normalization on the GPU runs without Triton kernels, which is slower: %s", error)
        return False
    return True


_LAUNCHED_BY: ContextVar[Any] = ContextVar("syncnorm_launched_by", default=None)


@contextmanager
def launching(kernels: Any) -> Iterator[None]:
    """Within it, launches go to `kernels`, which has the names of triton_kernels.py."""
    token = _LAUNCHED_BY.set(kernels)
    try:
        yield
    finally:
        _LAUNCHED_BY.reset(token)


def _kernels() -> Any:
    return _LAUNCHED_BY.get() or _compiled_kernels()


@functools.cache
def _compiled_kernels() -> Any:
    from syncnorm.norm.backends import triton_kernels

    return triton_kernels


def triton_dtype(dtype: torch.dtype) -> Any:
    """Triton's name of it."""
    import triton.language as tl

    return tl.float64 if dtype == torch.float64 else tl.float32


def power_of_two(number: int) -> int:
    """The smallest that is not below `number`."""
    return 1 << max(number - 1, 0).bit_length()


def ceil_div(number: int, size: int) -> int:
    """number / size, rounded up."""
    return -(-number // size)
