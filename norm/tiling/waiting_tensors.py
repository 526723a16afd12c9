"""What tiles hold while others run, in host memory."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from syncnorm.norm.accumulation.activation_memory import is_on_device, to_host
from syncnorm.norm.lockstep.nested_tensors import tensors_in
from syncnorm.norm.torch_compat import StorageWeakRef


@dataclass(frozen=True, eq=False)
class _Stored:
    """The values of a storage that is empty on its device for now."""

    storage: torch.UntypedStorage
    num_bytes: int
    values: Tensor

    def bring_back(self) -> None:
        self.storage.resize_(self.num_bytes)
        _bytes_of(self.storage).copy_(self.values, non_blocking=True)


class HostMemory:
    """Shared by all tiles. Tensors of the model stay where they are."""

    def __init__(self, model: nn.Module) -> None:
        tensors = (*model.parameters(), *model.buffers())
        self._staying = {tensor.untyped_storage().data_ptr() for tensor in tensors}
        self._stored: dict[int, _Stored] = {}

    def may_leave(self, tensor: Tensor) -> bool:
        if not is_on_device(tensor) or type(tensor) is not Tensor:
            return False
        storage = tensor.untyped_storage()
        return storage.resizable() and storage.data_ptr() not in self._staying

    def store(self, storage: torch.UntypedStorage) -> int | None:
        """Empty it on its device; gives its key, None where it is empty already."""
        if not storage.nbytes():
            return None
        key = _key(storage)
        self._stored[key] = _Stored(storage, storage.nbytes(), to_host(_bytes_of(storage)))
        storage.resize_(0)
        return key

    def bring_back(self, key: int) -> None:
        if (stored := self._stored.pop(key, None)) is not None:
            stored.bring_back()

    def require(self, arguments: Any) -> None:
        """Bring back what is needed now but belongs to a tile that waits, such as a grid that a module keeps."""
        if self._stored:
            for tensor in tensors_in(arguments):
                if tensor.numel() and is_on_device(tensor) and not tensor.untyped_storage().nbytes():
                    self.bring_back(_key(tensor.untyped_storage()))


class WaitingTensors:
    """Those of one tile."""

    def __init__(self, memory: HostMemory) -> None:
        self._memory = memory
        self._made: list[weakref.ref[Tensor]] = []
        self._keys: list[int] = []

    def note(self, result: Any) -> None:
        """Of what the forward has computed."""
        self._made += [weakref.ref(tensor) for tensor in tensors_in(result) if self._memory.may_leave(tensor)]

    def leave(self) -> None:
        """Move all that the forward still holds to the host."""
        held = [tensor for ref in self._made if (tensor := ref()) is not None]
        keys = [self._memory.store(tensor.untyped_storage()) for tensor in held]
        self._keys = [key for key in keys if key is not None]
        self._made = [weakref.ref(tensor) for tensor in held]

    def enter(self) -> None:
        """Move it back."""
        for key in self._keys:
            self._memory.bring_back(key)
        self._keys = []


def _key(storage: torch.UntypedStorage) -> int:
    """One for each storage, as long as it lives."""
    key: int = StorageWeakRef(storage).cdata  # type: ignore[no-untyped-call]
    return key


def _bytes_of(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
