"""Undocumented parts of torch that norm uses, in one place, for torch 2.11 to 2.15.

Each name has a test in tests/norm/test_torch_compat.py that says what norm relies on, so that a new torch which changes
it fails there first.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn
from torch._functorch import pyfunctorch
from torch._ops import OpOverload
from torch.autograd import forward_ad, profiler
from torch.autograd.function import BackwardCFunction
from torch.distributed import ProcessGroup, distributed_c10d
from torch.distributed import _functional_collectives as functional
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules.batchnorm import _BatchNorm as BatchNormBase
from torch.nn.modules.batchnorm import _NormBase as NormBase
from torch.nn.utils.parametrizations import _WeightNorm as WeightNormParametrization
from torch.utils._pytree import tree_leaves

__all__ = [
    "HOOK_DICTIONARIES",
    "BatchNormBase",
    "NormBase",
    "OpOverload",
    "StorageWeakRef",
    "WeightNormParametrization",
    "advance_sequence_number",
    "all_gather_into",
    "compiled_all_gather",
    "cpu_timeout",
    "default_group",
    "has_forward_hooks",
    "has_only_gloo",
    "is_batched",
    "is_in_backward",
    "is_in_forward_mode",
    "is_inside_functorch",
    "is_profiled",
    "is_traced",
    "is_under_dispatch_mode",
    "is_wrapped_by_functorch",
    "next_sequence_number",
    "outside_functorch",
    "running_functions",
    "saved_tensors_hooks",
    "sequence_number",
    "store_of",
    "tree_leaves",
    "unwrapped",
    "version_of",
]

HOOK_DICTIONARIES = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)
"""Where a module keeps the hooks on its forward and backward. A handle removes its hook from the dictionary itself."""


def has_forward_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def is_in_backward() -> bool:
    """Whether this thread is running a backward pass, as when activation checkpointing runs a forward again."""
    return torch._C._current_graph_task_id() != -1


def saved_tensors_hooks() -> tuple[Any, Any] | None:
    """How tensors saved for backward are packed and unpacked now, as under non-reentrant activation checkpointing."""
    hooks: tuple[Any, Any] | None = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return hooks


def running_functions() -> Iterator[Any]:
    """The contexts of autograd functions whose forward is running, innermost first. Each lives as long as its node.

    Reentrant activation checkpointing is such a function.
    """
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_name == "forward" and code.co_argcount:
            context = frame.f_locals.get(code.co_varnames[0])
            if isinstance(context, BackwardCFunction):
                yield context
        frame = frame.f_back  # type: ignore[assignment]


def sequence_number() -> int:
    """That of a node of the graph made now. Each thread counts its own, and the backward pass takes, of the nodes that
    are ready, the one with the highest number first."""
    number: int = torch.zeros((), requires_grad=True).neg().grad_fn._sequence_nr()  # type: ignore[union-attr]
    return number


def next_sequence_number() -> int:
    """That of the node which this thread makes next. Unlike sequence_number it makes none, so traces don't show it."""
    number: int = torch._C._autograd._get_sequence_nr()
    return number


def advance_sequence_number(number: int) -> None:
    """Let this thread count on from `number`, if it is not there yet."""
    start = torch.zeros((), requires_grad=True)
    while start.neg().grad_fn._sequence_nr() < number:  # type: ignore[union-attr]
        pass


def is_inside_functorch() -> bool:
    """Whether a transform of torch.func (grad, vmap, jvp) is running."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def is_in_forward_mode() -> bool:
    """Whether forward-mode differentiation is on (`torch.autograd.forward_ad`, or jvp of torch.func)."""
    return forward_ad._current_level >= 0


def is_under_dispatch_mode() -> bool:
    """Whether something watches or records the operators that run, as make_fx does."""
    return torch._C._len_torch_dispatch_stack() > 0


def is_traced() -> bool:
    """Whether torch.jit.trace records the operators that run."""
    return bool(torch._C._is_tracing())


def is_wrapped_by_functorch(tensor: Tensor) -> bool:
    """Whether a transform of torch.func that is running took `tensor` as its input, or computed it."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(tensor))


def version_of(tensor: Tensor) -> int:
    """How often `tensor`, or what shares its memory, was changed in place."""
    return tensor._version


def is_batched(tensor: Tensor) -> bool:
    """Whether vmap runs over `tensor`: that of torch.func, or the older one of a vectorized backward."""
    functorch = torch._C._functorch
    return bool(functorch.is_batchedtensor(tensor) or functorch.is_legacy_batchedtensor(tensor))


def unwrapped(tensor: Tensor) -> Tensor | None:
    """The value of `tensor` outside of grad and jvp; None under vmap, where it has a value for every slice."""
    while is_wrapped_by_functorch(tensor):
        if torch._C._functorch.is_batchedtensor(tensor):
            return None
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor.detach()


def outside_functorch() -> AbstractContextManager[Any]:
    """Within it, no transform of torch.func is running, and tensors from outside may be changed in place."""
    return pyfunctorch.temporarily_clear_interpreter_stack()


def default_group() -> ProcessGroup:
    """The process group of all workers. Raises: ValueError without torch.distributed."""
    return distributed_c10d._get_default_group()


def store_of(group: ProcessGroup) -> distributed_c10d.Store:
    """The key-value store in which the workers of `group` found each other."""
    store: distributed_c10d.Store = distributed_c10d._get_process_group_store(group)
    return store


def cpu_timeout(group: ProcessGroup) -> timedelta:
    """How long an exchange between the CPUs of `group` may take."""
    timeout: timedelta = group._get_backend(torch.device("cpu")).options._timeout
    return timeout


def has_only_gloo(group: ProcessGroup, device: torch.device) -> bool:
    """Whether `group` carries tensors of `device` by gloo."""
    return bool(group._get_backend(device).name() == "gloo")


def all_gather_into(rows: Tensor, row: Tensor, group: ProcessGroup) -> None:
    """Fill `rows` (W, F) with the row (F,) of every worker. The device's stream waits, not the host."""
    group._allgather_base(rows.view(-1), row).wait()


def compiled_all_gather(row: Tensor, group: ProcessGroup) -> Tensor:
    """(W * F,): the rows of every worker one behind the other, as an operator that torch.compile can trace."""
    arrived: Tensor = functional.wait_tensor(functional.all_gather_tensor(row, 0, group))  # type: ignore[no-untyped-call]
    return arrived


def is_profiled() -> bool:
    """Whether torch's profiler records in this process. Costs 50 ns."""
    return profiler._is_profiler_enabled
