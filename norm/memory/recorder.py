"""Watches a forward, and gives autograd a way to compute the outputs of normalizations and activations again.

A normalization keeps its input for backward, the activation behind it and the layer behind that keep its output: two
tensors, of which the second is cheap to have again. The recorder is active while a module runs to which `attach` was
applied. It sees the operators (a mode of torch) and what they save (hooks on saved tensors).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from syncnorm.norm.backends.by_sample.group_norm import group_norm
from syncnorm.norm.memory import constant_scale
from syncnorm.norm.memory.operators import (
    ACTIVATIONS,
    Compute,
    batch_norm_of,
    batch_norm_of_known_statistics,
    copies_input,
    has_known_bits,
    variants,
)
from syncnorm.norm.memory.saved_values import Handle, Kept, Recomputed, unpack
from syncnorm.norm.torch_compat import (
    HOOK_DICTIONARIES,
    StorageWeakRef,
    is_in_backward,
    is_in_forward_mode,
    is_inside_functorch,
    is_traced,
    is_under_dispatch_mode,
    saved_tensors_hooks,
    version_of,
)


class Recorder(TorchFunctionMode):
    """One forward."""

    def __init__(self) -> None:
        super().__init__()
        self._outer = saved_tensors_hooks()
        self._pack = self._as_handle
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, unpack)
        self._known: dict[_Key, tuple[int, Kept | Recomputed]] = {}
        self._waiting: list[tuple[Handle, Tensor]] | None = None  # what the activation that runs now saves

    def start(self) -> None:
        self._hooks.__enter__()
        self.__enter__()  # type: ignore[no-untyped-call]

    def stop(self) -> None:
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        self._hooks.__exit__()
        self._known.clear()  # from here on the graph alone owns what it needs

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _OPERATORS or not self.is_listening():
            return func(*args, **kwargs)
        return _OPERATORS[func](self, func, *args, **kwargs)

    def is_listening(self) -> bool:
        """Whether what is saved now comes here, and not to activation checkpointing inside."""
        hooks = saved_tensors_hooks()
        return torch.is_grad_enabled() and hooks is not None and hooks[0] is self._pack

    def offer(self, x: Tensor, y: Tensor, compute: Compute, tensors: Iterable[Tensor | None] = ()) -> None:
        """Say that y is `compute(x)`, with the same bits as long as `tensors` stay."""
        if not (y.requires_grad and self.is_listening()):
            return
        source = self._find(x)
        if source is None:
            source = Kept(x.detach(), self._outer)
            self._note(x, source)
        self._note(y, Recomputed(source, compute, tensors, x.device.type))

    def batch_norm(
        self,
        func: Any,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        """F.batch_norm. Again it moves no running statistics; with constants it keeps nothing."""
        if not training and running_mean is not None and running_var is not None and not _learns(weight, bias):
            return constant_scale.normalize(input, running_mean, running_var, weight, bias, eps)
        if training and has_known_bits(input, weight):
            y, mean, invstd = torch.native_batch_norm(
                input, weight, bias, running_mean, running_var, training, momentum, eps
            )
            compute = partial(batch_norm_of_known_statistics, mean.detach(), invstd.detach(), weight, bias)
        else:
            y = func(input, running_mean, running_var, weight, bias, training, momentum, eps)
            statistics = (None, None) if training else (running_mean, running_var)
            compute = partial(batch_norm_of, (*statistics, weight, bias, training, 0.0, eps))
        self.offer(input, y, compute, (weight, bias, *(() if training else (running_mean, running_var))))
        return y

    def normalize(self, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """A normalization without running statistics."""
        y: Tensor = func(input, *args, **kwargs)
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        self.offer(input, y, lambda x: func(x, *args, **kwargs), tensors)
        return y

    def activate(self, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """An activation: its output can be had again where its input can, or where it keeps its input itself."""
        source, key = self._find(input), _key(input)
        waiting: list[tuple[Handle, Tensor]] = []
        self._waiting = waiting
        try:
            y: Tensor = func(input, *args, **kwargs)
        finally:
            self._waiting = None
        copies = copies_input(func, args, kwargs)
        for handle, tensor in waiting:
            if _key(tensor) == _key(y):
                continue
            is_input = _key(tensor) == key or (copies and tensor.shape == y.shape and tensor.dtype == y.dtype)
            handle.point_to(source if is_input and isinstance(source, Recomputed) else self._target(tensor))
            source = handle.target if is_input else source
        if y.requires_grad and source is not None:
            tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
            compute, overwrite = variants(func, args, kwargs)
            self._note(y, Recomputed(source, compute, tensors, y.device.type, overwrite))
        for handle, tensor in waiting:
            if handle.target is None:  # its output, of which nothing was known when it was saved
                handle.point_to(self._target(tensor))
        return y

    def _as_handle(self, tensor: Tensor) -> Handle:
        handle = Handle()
        if self._waiting is None:
            handle.point_to(self._target(tensor))
        else:
            self._waiting.append((handle, tensor))
        return handle

    def _target(self, tensor: Tensor) -> Kept | Recomputed:
        target = self._find(tensor)
        if target is None:
            target = Kept(tensor, self._outer)
            self._note(tensor, target)
        return target

    def _note(self, tensor: Tensor, target: Kept | Recomputed) -> None:
        key = _key(tensor)
        if key is not None:
            self._known[key] = (version_of(tensor), target)

    def _find(self, tensor: Tensor) -> Kept | Recomputed | None:
        """What is known of exactly these numbers."""
        key = _key(tensor)
        version, target = self._known.get(key, (None, None)) if key is not None else (None, None)
        return target if version == version_of(tensor) else None


_Key = tuple[StorageWeakRef, torch.Size, tuple[int, ...], int, torch.dtype]


def _key(tensor: Tensor) -> _Key | None:
    """The memory of a tensor and how it reads it. The weak reference keeps another tensor from getting its address."""
    if type(tensor) is not Tensor and type(tensor) is not nn.Parameter:
        return None
    if tensor.layout is not torch.strided:
        return None
    storage = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
    return storage, tensor.shape, tensor.stride(), int(tensor.storage_offset()), tensor.dtype


def _learns(*tensors: Tensor | None) -> bool:
    return any(tensor is not None and tensor.requires_grad for tensor in tensors)


_OPERATORS: dict[Any, Callable[..., Tensor]] = {
    F.batch_norm: Recorder.batch_norm,
    F.group_norm: Recorder.normalize,
    group_norm: Recorder.normalize,
    F.layer_norm: Recorder.normalize,
    **dict.fromkeys(ACTIVATIONS, Recorder.activate),
}


class _State(threading.local):
    def __init__(self) -> None:
        self.recorder: Recorder | None = None
        self.started: list[Recorder | None] = []  # one for each attached module that is running


_STATE = _State()


def current() -> Recorder | None:
    """The recorder of the forward that runs in this thread."""
    return _STATE.recorder


def attach(module: nn.Module) -> None:
    """Record every forward of `module` that autograd follows. Twice is as once."""
    if _start not in module._forward_pre_hooks.values():
        module.register_forward_pre_hook(_start)
        module.register_forward_hook(_stop, always_call=True)


def detach(module: nn.Module) -> None:
    """Undo `attach`."""
    hooks = {**module._forward_pre_hooks, **module._forward_hooks}
    for number in [number for number, hook in hooks.items() if hook in (_start, _stop)]:
        for name in HOOK_DICTIONARIES:
            getattr(module, name).pop(number, None)


def _start(module: nn.Module, args: Any) -> None:  # noqa: ARG001 - torch's signature
    if torch.compiler.is_compiling():  # the compiler decides by itself what to compute again
        return
    recorder = Recorder() if current() is None and _can_record() else None
    _STATE.started.append(recorder)
    if recorder is not None:
        _STATE.recorder = recorder
        recorder.start()


def _stop(module: nn.Module, args: Any, output: Any) -> None:  # noqa: ARG001 - torch's signature
    if torch.compiler.is_compiling():
        return
    recorder = _STATE.started.pop()
    if recorder is not None:
        _STATE.recorder = None
        recorder.stop()


def _can_record() -> bool:
    """Not inside activation checkpointing, which keeps nothing anyway and counts what is saved; nor in transforms."""
    hooks = saved_tensors_hooks()
    is_checkpointed = hooks is not None and getattr(hooks[0], "__module__", "") == torch.utils.checkpoint.__name__
    is_transformed = is_inside_functorch() or is_in_forward_mode() or is_under_dispatch_mode()
    is_recorded = is_traced() or is_in_backward()
    return torch.is_grad_enabled() and not (is_checkpointed or is_transformed or is_recorded)
