"""Shows the node in C++ (norm/native/cuda_node.cpp) what cuda_triton.py launches, so that it can launch the same.

Triton compiles a kernel at its first launch and gives it back. What is read from it is not documented by Triton. It is
read in `read` alone, and tried once in each process: if the node launches a kernel and other numbers come out than with
Triton, or Triton has changed, you get a warning, and Python launches as before.
"""

from __future__ import annotations

import ctypes
import functools
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from syncnorm.norm.backends import cuda_triton
from syncnorm.norm.native import extension

_FORMATS = {"i32": "<i", "i64": "<q", "fp32": "<f", "fp64": "<d"}
"""How the driver reads a number of each of Triton's types."""

Described = tuple[int, tuple[int, int, int], int, int, list[tuple[int, int]]]
"""A launch for C++: see launches.cpp."""


@functools.cache
def node(device: torch.device) -> Any:
    """The module of cuda_node.cpp; None: not wanted by SYNCNORM_NODE=cuda, not yet compiled, or impossible here."""
    if os.environ.get("SYNCNORM_NODE") != "cuda":
        return None
    return extension.load(extension.CUDA_NODE, lambda module: _prepare(module, device))


def learn(step: str, arguments: tuple[Any, ...]) -> tuple[tuple[Tensor, ...], tuple[Described, ...] | None]:
    """Does a step of cuda_triton.py: its results, and what it launched; None where the node can't do the same."""
    recorder = Recorder()
    with cuda_triton.launching(recorder):
        results = getattr(cuda_triton, step)(*arguments)
    return results if isinstance(results, tuple) else (results,), _described_or_none(recorder)


def _described_or_none(recorder: Recorder) -> tuple[Described, ...] | None:
    try:
        return recorder.described()
    except UnknownKernelError as error:
        _warn_once(str(error))
        return None


class Recorder:
    """Stands for triton_kernels.py: launches its kernels, and keeps what was launched."""

    def __init__(self) -> None:
        self._launched: list[_Launched] = []

    def __getattr__(self, name: str) -> _Recorded:
        from syncnorm.norm.backends import triton_kernels

        return _Recorded(getattr(triton_kernels, name), self._launched)

    def described(self) -> tuple[Described, ...]:
        """For C++, in the order of the launches. Raises: UnknownKernelError."""
        return tuple(describe(read(kernel), grid, values) for kernel, grid, values in self._launched)


_Launched = tuple[Any, tuple[int, ...], tuple[Any, ...]]
"""What Triton gave back for a launch, its grid, and its arguments."""


@dataclass(frozen=True)
class _Recorded:
    kernel: Any
    launched: list[_Launched]

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def launch(*values: Any, **options: Any) -> None:
            self.launched.append((self.kernel[grid](*values, **options), grid, values))

        return launch


class UnknownKernelError(RuntimeError):
    """A kernel that Triton compiled needs something that the node does not do, or looks different from what we know."""


class Compiled(NamedTuple):
    """What the node has to know of a kernel that Triton compiled. types: of the arguments; constexpr: not passed."""

    function: int  # the driver's handle, which lives as long as this process
    num_threads: int
    shared_bytes: int
    types: tuple[str, ...]


def read(kernel: Any) -> Compiled:
    """What Triton 3.6 to 3.8 tell of a kernel that was launched.

    Raises: UnknownKernelError unless the kernel is one that cuLaunchKernel can launch, without memory of its own.
    """
    try:
        facts, source = kernel.metadata, kernel.src
        special = (
            facts.num_ctas - 1,
            facts.launch_cooperative_grid,
            facts.launch_pdl,
            facts.global_scratch_size,
            facts.profile_scratch_size,
            getattr(facts, "instrumentation_mode", ""),
        )
        types = tuple(source.signature[name] for name in source.fn.arg_names)
        found = Compiled(kernel.function, facts.num_warps * facts.target.warp_size, facts.shared, types)
    except (AttributeError, KeyError, TypeError) as error:
        raise UnknownKernelError(f"this Triton is not known: {error!r}") from error
    if any(special):
        raise UnknownKernelError(f"{source.fn.__name__} was compiled to be launched in a special way: {special}")
    _KEPT[found.function] = kernel
    return found


_KEPT: dict[int, Any] = {}
"""Kernels that C++ launches: Triton takes one from the GPU when nothing refers to it."""


def describe(compiled: Compiled, grid: tuple[int, ...], values: tuple[Any, ...]) -> Described:
    """A launch for C++. Tensors come first among the arguments of our kernels, so that their positions count them."""
    passed = [
        (position, 0) if kind.startswith("*") else (-1, _bits(kind, value))
        for position, (kind, value) in enumerate(zip(compiled.types, values, strict=True))
        if kind != "constexpr"
    ]
    scratch = [(-1, 0)] * 2  # two pointers to memory that these kernels don't need
    x, y, z = (*grid, 1, 1)[:3]
    return compiled.function, (x, y, z), compiled.num_threads, compiled.shared_bytes, passed + scratch


def _bits(kind: str, value: Any) -> int:
    if kind not in _FORMATS:
        raise UnknownKernelError(f"an argument of the unknown type {kind}")
    return int.from_bytes(struct.pack(_FORMATS[kind], value).ljust(8, b"\0"), "little", signed=True)


def launch_kernel() -> int:
    """The address of the function of the GPU's driver that launches a kernel."""
    return _address(ctypes.CDLL("libcuda.so.1").cuLaunchKernel)


def current_stream() -> int:
    """The address of the function of torch that gives the current stream of a GPU: one of its stable interface in C."""
    library = Path(torch.__file__).parent / "lib" / "libtorch_cuda.so"
    return _address(ctypes.CDLL(str(library)).aoti_torch_get_current_cuda_stream)


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def _prepare(module: Any, device: torch.device) -> None:
    """Raises: RuntimeError unless the node launches as Triton does."""
    clock = ctypes.addressof(extension.exchange_clock)
    module.bind(launch_kernel(), current_stream(), clock, torch.empty(0, device=device))
    x, recorder = torch.arange(6.0, device=device).view(3, 2), Recorder()
    with cuda_triton.launching(recorder):
        expected = cuda_triton.measure(x)
    found = torch.zeros_like(expected)
    for launch in recorder.described():
        module.launch(launch, x, found)
    if not torch.equal(found, expected):
        raise RuntimeError(f"a kernel launched by the node gave {found.tolist()}, and not {expected.tolist()}")


@functools.cache
def _warn_once(reason: str) -> None:
    extension.warn(reason)
