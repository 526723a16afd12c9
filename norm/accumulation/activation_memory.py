"""Where the activations of micro-batches wait for the backward pass: on the device, in host memory, or nowhere."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from syncnorm.norm.torch_compat import StorageWeakRef

Memory = Literal["host", "device", "recompute"]
MEMORIES: tuple[Memory, ...] = ("host", "device", "recompute")
_SMALL_BYTES = 4096  # not worth a transfer


@contextmanager
def kept_in(memory: Memory, model: nn.Module, layers: Iterable[nn.Module]) -> Iterator[None]:
    """Within the block, what `model` saves for backward is kept as `memory` says. layers: where micro-batches meet.

    Raises: ValueError for `recompute` where there is no module around a layer but the model itself.
    """
    if memory == "recompute" and torch.is_grad_enabled():
        with _recomputed(_blocks(model, set(layers))):
            yield
    else:
        with _HostMemory(model).hooks() if memory == "host" else nullcontext():
            yield


def is_on_device(tensor: Tensor) -> bool:
    return tensor.device.type not in ("cpu", "meta")


class _Saved:
    """One tensor in host memory. source: what it was copied from, without keeping that."""

    def __init__(self, tensor: Tensor, source: StorageWeakRef) -> None:
        self.source, self.device = source, tensor.device
        self.values = to_host(tensor)


class _HostMemory:
    """Copies what is saved for backward to the host, once however many operations save it. Parameters and buffers stay
    where they are, and so do small tensors, and others than plain ones."""

    def __init__(self, model: nn.Module) -> None:
        self._on_device = any(map(is_on_device, (*model.parameters(), *model.buffers())))
        self._staying = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
        self._copies: weakref.WeakValueDictionary[tuple[Any, ...], _Saved] = weakref.WeakValueDictionary()

    def hooks(self) -> Any:
        if not (self._on_device and torch.is_grad_enabled()):
            return nullcontext()
        return torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)

    def _pack(self, tensor: Tensor) -> Tensor | _Saved:
        storage = tensor.untyped_storage()
        if (
            not is_on_device(tensor)
            or type(tensor) not in (Tensor, nn.Parameter)
            or tensor.numel() * tensor.element_size() < _SMALL_BYTES
            or storage.data_ptr() in self._staying
        ):
            return tensor
        # While an entry holds a weak reference to the storage, no other storage can be at its address.
        source = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
        form = (tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype, tensor._version)
        saved = self._copies.get((source.cdata, *form))
        if saved is None:
            saved = self._copies[(source.cdata, *form)] = _Saved(tensor, source)
        return saved

    def _unpack(self, saved: Tensor | _Saved) -> Tensor:
        return to_device(saved.values, saved.device) if isinstance(saved, _Saved) else saved


def to_host(tensor: Tensor) -> Tensor:
    """A copy in host memory, which the device fills while the host goes on where it can."""
    if tensor.device.type != "cuda":
        return tensor.detach().to("cpu", copy=True)
    values = torch.empty_like(tensor, device="cpu", pin_memory=True)
    return values.copy_(tensor, non_blocking=True)


def to_device(values: Tensor, device: torch.device) -> Tensor:
    return values.to(device, non_blocking=True, copy=True)


def _blocks(model: nn.Module, layers: set[nn.Module]) -> list[nn.Module]:
    """The outermost modules, but the model itself, that hold a layer as a child of their own."""
    found = [module for module in _outermost(model, layers) if module is not model]
    if layers and not found:
        raise ValueError(
            'memory="recompute" runs the modules around normalization layers again, but the model has none besides '
            f'itself ({type(model).__name__}). Put its layers into blocks, or use memory="host".'
        )
    return found


def _outermost(module: nn.Module, layers: set[nn.Module], *, is_root: bool = True) -> Iterator[nn.Module]:
    if not is_root and any(child in layers for child in module.children()):
        yield module
        return
    for child in module.children():
        yield from _outermost(child, layers, is_root=False)


@contextmanager
def _recomputed(blocks: Iterable[nn.Module]) -> Iterator[None]:
    with ExitStack() as stack:
        for block in dict.fromkeys(blocks):
            own: Callable[..., Any] = block.forward
            before = vars(block).get("forward")
            vars(block)["forward"] = partial(checkpoint, own, use_reentrant=False)
            stack.callback(_put_back, block, before)
        yield


def _put_back(block: nn.Module, before: Any) -> None:
    if before is None:
        del vars(block)["forward"]
    else:
        vars(block)["forward"] = before
