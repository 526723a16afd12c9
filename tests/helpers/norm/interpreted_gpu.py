"""The way of a GPU on CPU tensors: Triton's interpreter runs the kernels, and a function stands for the GPU's driver.

Only in a process that has begun with TRITON_INTERPRET=1. See `interpreted_ranks`.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from syncnorm.norm.backends import cuda_triton, fused, triton_launches
from tests.helpers.norm.pool import Pool

_TYPES = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
}
_DTYPES = {name: dtype for dtype, name in _TYPES.items()}
_NUMBERS = {"i32": ctypes.c_int32, "i64": ctypes.c_int64, "fp32": ctypes.c_float}
_LAUNCH = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_void_p,
    *[ctypes.c_uint] * 7,
    ctypes.c_void_p,
    ctypes.POINTER(ctypes.c_void_p),
    ctypes.c_void_p,
)


_STREAM = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int32, ctypes.c_void_p)


class InterpretedPool(Pool):
    """Workers in which Triton interprets its kernels."""

    def run(self, fn: Callable[..., Any], world_size: int, *args: object) -> list[Any]:
        with patch.dict(os.environ, TRITON_INTERPRET="1"):
            return super().run(fn, world_size, *args)


class Driver:
    """Launches the kernels that Triton has interpreted once, from what cuLaunchKernel is given."""

    def __init__(self, interpret: Callable[..., None]) -> None:
        self._interpret = interpret
        self.launched: list[str] = []
        self.statuses: list[int] = []
        """What the next launches give back instead of launching."""
        self.changes: dict[str, Any] = {}
        """To the metadata of kernels that are compiled from now on."""
        self._kernels: list[tuple[Any, tuple[Any, ...], SimpleNamespace]] = []
        self._callbacks = (_LAUNCH(self._launch), _STREAM(lambda *_: 0))

    def addresses(self) -> tuple[int, ...]:
        """Of what stands for cuLaunchKernel, and for torch's current stream."""
        return tuple(ctypes.cast(callback, ctypes.c_void_p).value or 0 for callback in self._callbacks)

    def compiled(self, function: Any, values: tuple[Any, ...]) -> SimpleNamespace:
        """What Triton's compiler would give back for a launch of `function`, as far as `triton_launches` reads it."""
        constants = [name for name, kind in function.fn.__annotations__.items() if "constexpr" in str(kind)]
        names = function.arg_names
        signature = {
            name: "constexpr" if name in constants else _type_of(value)
            for name, value in zip(names, values, strict=True)
        }
        metadata = SimpleNamespace(
            num_ctas=1, launch_cooperative_grid=False, launch_pdl=False, global_scratch_size=0, profile_scratch_size=0,
            num_warps=4, shared=0, target=SimpleNamespace(warp_size=32),
        )  # fmt: skip
        vars(metadata).update(self.changes)
        source = SimpleNamespace(
            signature=signature, fn=SimpleNamespace(arg_names=names, __name__=function.fn.__name__)
        )
        kernel = SimpleNamespace(metadata=metadata, src=source, function=len(self._kernels) + 1)
        self._kernels.append((function, values, kernel))
        return kernel

    def _launch(self, handle: int, x: int, y: int, z: int, *rest: Any) -> int:
        if self.statuses:
            return self.statuses.pop(0)
        function, values, kernel = self._kernels[handle - 1]
        places = rest[-2]
        kinds, at = kernel.src.signature.values(), 0
        given = []
        for kind, value in zip(kinds, values, strict=True):
            given.append(value if kind == "constexpr" else _read(kind, places[at]))
            at += kind != "constexpr"
        try:
            self._interpret(function, *given, grid=(x, y, z), warmup=False)
        except Exception as error:
            print(error)
            return 1
        self.launched.append(kernel.src.fn.__name__)
        return 0


def _rounded(value: Any) -> Any:
    """As a GPU gets it: Triton passes floats in float32, its interpreter doesn't round them."""
    return ctypes.c_float(value).value if isinstance(value, float) else value


def _type_of(value: Any) -> str:
    if value is None or (isinstance(value, int) and value == 1):
        return "constexpr"
    if isinstance(value, Tensor):
        return _TYPES[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


def _read(kind: str, place: int) -> Any:
    """The argument of a kernel that lies there. The interpreter asks of a tensor only where it begins."""
    if kind in _NUMBERS:
        return _NUMBERS[kind].from_address(place).value
    dtype, address = _DTYPES[kind], ctypes.c_void_p.from_address(place).value
    assert address is not None
    return torch.frombuffer((ctypes.c_char * dtype.itemsize).from_address(address), dtype=dtype)


@contextmanager
def interpreted_gpu(*, with_node: bool, driver: type[Driver] = Driver) -> Iterator[Driver]:
    """Within it, CPU tensors go the way of a GPU, and rows travel by the process group itself."""
    from triton.runtime.interpreter import InterpretedFunction

    interpret = InterpretedFunction.run
    started = driver(interpret)

    def run(self: Any, *given: Any, **how: Any) -> SimpleNamespace:
        values = tuple(_rounded(value) for value in given)
        interpret(self, *values, **how)
        return started.compiled(self, values)

    with ExitStack() as stack:
        for target, replacement in {
            "torch.cuda.current_device": lambda: None,
            f"{cuda_triton.__name__}._can_compile": lambda _: True,
            f"{cuda_triton.__name__}._multiprocessors": lambda _: 1,
            "syncnorm.norm.distributed.collectives._is_carried_by_cpu": lambda *_: False,
            f"{triton_launches.__name__}.launch_kernel": lambda: started.addresses()[0],
            f"{triton_launches.__name__}.current_stream": lambda: started.addresses()[1],
        }.items():
            stack.enter_context(patch(target, replacement))
        stack.enter_context(patch.object(InterpretedFunction, "run", run))
        stack.enter_context(patch.dict(fused._KERNELS, cpu=(cuda_triton,)))
        stack.enter_context(patch.dict(os.environ, SYNCNORM_NODE="cuda" if with_node else "1"))
        triton_launches.node.cache_clear()
        stack.callback(triton_launches.node.cache_clear)
        yield started
