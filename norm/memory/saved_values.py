"""What autograd holds for backward in place of a tensor: the tensor, or how to compute it again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from syncnorm.norm.torch_compat import version_of


class Kept:
    """A tensor as it is, or as hooks around ours packed it."""

    def __init__(self, tensor: Tensor, hooks: tuple[Any, Any] | None) -> None:
        self._unpack = None if hooks is None else hooks[1]
        self._packed = tensor if hooks is None else hooks[0](tensor)
        self._guard = Unchanged([] if hooks is not None else [tensor])

    def value(self) -> Tensor:
        self._guard.check()
        value: Tensor = self._packed if self._unpack is None else self._unpack(self._packed)
        return value

    def serve(self) -> Tensor:
        """The tensor, for what holds a handle."""
        return self.value()


class Recomputed:
    """A tensor that `compute` makes of the value of `source`, under the autocast of then, with the same bits.

    tensors: what else `compute` reads, and must find unchanged. overwrite: the same, into the memory of its argument,
    for values of the source that nobody else has.
    """

    def __init__(
        self,
        source: Kept | Recomputed,
        compute: Callable[[Tensor], Tensor],
        tensors: Iterable[Tensor | None],
        device_type: str,
        overwrite: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._source = source
        self._compute = compute
        self._overwrite = overwrite or compute
        self._guard = Unchanged(tensor for tensor in tensors if tensor is not None)
        self._autocast = _autocast_of(device_type)
        self._num_handles = 0
        self._num_served = 0
        self._value: Tensor | None = None

    def value(self) -> Tensor:
        """The tensor. It stays until every holder of a handle had it, which is soon: they are neighbours."""
        value = self._value
        if value is None:
            self._guard.check()
            with torch.no_grad(), self._autocast():
                source = self._source.value()
                is_ours = isinstance(self._source, Recomputed) and self._source._value is None
                value = self._overwrite(source) if is_ours else self._compute(source)
        self._value = value if self._num_served < self._num_handles else None
        return value

    def serve(self) -> Tensor:
        """The tensor, for what holds a handle."""
        value = self.value()
        self._num_served += 1
        if self._num_served >= self._num_handles:
            self._value, self._num_served = None, 0
        return value

    def count_handle(self) -> None:
        self._num_handles += 1


def _autocast_of(device_type: str) -> Callable[[], AbstractContextManager[Any]]:
    """How to have autocast as it is now."""
    if not torch.amp.is_autocast_available(device_type):
        return nullcontext
    dtype, enabled = torch.get_autocast_dtype(device_type), torch.is_autocast_enabled(device_type)
    return lambda: torch.autocast(device_type, dtype, enabled, cache_enabled=False)


class Unchanged:
    """That tensors still are what they were: with hooks, autograd leaves this check to them."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._tensors = [(tensor, version_of(tensor)) for tensor in tensors]

    def check(self) -> None:
        """Raises: RuntimeError, as autograd does, if one was changed in place meanwhile."""
        for tensor, version in self._tensors:
            if version_of(tensor) != version:
                raise RuntimeError(
                    "one of the variables needed for gradient computation has been modified by an inplace operation: "
                    f"a tensor of shape {tuple(tensor.shape)} is at version {version_of(tensor)}; expected version "
                    f"{version} instead. Change it after backward, or on a copy."
                )


class Handle:
    """What autograd holds: a tensor, or a way to compute it as soon as one is known."""

    target: Kept | Recomputed | None = None

    def point_to(self, target: Kept | Recomputed) -> None:
        self.target = target
        if isinstance(target, Recomputed):
            target.count_handle()


def unpack(handle: Handle) -> Tensor:
    """The hook that autograd calls in backward."""
    assert handle.target is not None
    return handle.target.serve()
