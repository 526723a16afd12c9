"""The header that identifies a call and travels with every row, so that workers in different layers notice at once."""

from __future__ import annotations

import ctypes
import gc
import struct
import weakref
import zlib
from dataclasses import dataclass
from typing import Literal

from torch import nn

HEADER_BYTES = 128
Direction = Literal["forward", "backward"]

_WORDS = struct.Struct("<qqqq")  # key, call number, row length, checksum of the name; compared as they are
_CALL = struct.Struct("<q")
_DIRECTIONS: tuple[Direction, Direction] = ("forward", "backward")


class ExchangeError(RuntimeError):
    """Workers did not meet: one skipped a layer, another has other channels there, or one is gone.

    >>> issubclass(norm.ExchangeError, RuntimeError)
    True
    """


class WorkerGoneError(ExchangeError):
    """The worker that was waited for has ended, or left the process group.

    >>> issubclass(norm.WorkerGoneError, norm.ExchangeError)
    True
    """


@dataclass(frozen=True)
class Call:
    """One exchange as a worker announced it."""

    key: int
    number: int
    length: int
    name: str

    @classmethod
    def parse(cls, header: bytes) -> Call:
        key, number, length, _ = _WORDS.unpack_from(header)
        return cls(key, number, length, header[_WORDS.size :].rstrip(b"\0").decode(errors="replace"))

    def agrees(self, other: Call) -> bool:
        """Whether both may meet. A model wrapped on one worker only has a longer path for the same layer."""
        if (self.key, self.number, self.length) != (other.key, other.number, other.length):
            return False
        return f".{self.name}".endswith(f".{other.name}") or f".{other.name}".endswith(f".{self.name}")

    def __str__(self) -> str:
        direction = _DIRECTIONS[self.key & 1]
        return f"{self.name or 'a layer without a name'} ({direction}, call {self.number}, {self.length} numbers)"


class Header:
    """The bytes of one layer's header, where they lie, and the number of the call they announce."""

    def __init__(self, key: int, length: int, name: str) -> None:
        encoded = name.encode()[-(HEADER_BYTES - _WORDS.size) :]
        self.bytes = bytearray(HEADER_BYTES)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.bytes))
        _WORDS.pack_into(self.bytes, 0, key, 0, length, zlib.crc32(encoded))
        self.bytes[_WORDS.size : _WORDS.size + len(encoded)] = encoded
        self.key, self.length = key, length

    def count(self) -> Header:
        """The header of the next call. The node in C++ counts in the same bytes."""
        _CALL.pack_into(self.bytes, 8, _CALL.unpack_from(self.bytes, 8)[0] + 1)
        return self

    def call(self) -> Call:
        return Call.parse(bytes(self.bytes))


class Ledger:
    """The headers of one group: layers are numbered by first use in it, and their calls counted."""

    def __init__(self) -> None:
        self._headers: weakref.WeakKeyDictionary[nn.Module, dict[tuple[str, int], Header]] = weakref.WeakKeyDictionary()
        self._anonymous: dict[tuple[str, int], Header] = {}
        self._paths: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
        self._num_layers = 0

    def header(self, layer: nn.Module | None, direction: Direction, length: int) -> Header:
        """The header of the exchanges of `layer`, to be counted at each."""
        headers = self._anonymous if layer is None else self._headers.get(layer)
        if headers is None:
            assert layer is not None
            headers = self._headers[layer] = {}
        header = headers.get((direction, length))
        if header is None:
            header = headers[direction, length] = self._new(layer, direction, length)
        return header

    def _new(self, layer: nn.Module | None, direction: Direction, length: int) -> Header:
        if layer is None:
            return Header(_DIRECTIONS.index(direction), length, "")
        known = next(iter(self._headers[layer].values()), None)
        if known is None:
            self._num_layers += 1
        index = self._num_layers if known is None else known.key >> 1
        return Header(index << 1 | _DIRECTIONS.index(direction), length, self._path(layer))

    def _path(self, layer: nn.Module) -> str:
        if layer not in self._paths:
            self._paths.update(_module_paths())
        return self._paths.get(layer, type(layer).__name__)


def _module_paths() -> dict[nn.Module, str]:
    """Module path of every live module, seen from the outermost one that holds it. A module doesn't know its own."""
    modules = [thing for thing in gc.get_objects() if issubclass(type(thing), nn.Module)]
    inner = {id(child) for module in modules for child in module._modules.values() if child is not None}
    paths: dict[nn.Module, str] = {}
    for root in modules:
        if id(root) not in inner:
            for path, module in root.named_modules():
                # DistributedDataParallel and torch.compile put a name of their own before the path.
                plain = path.removeprefix("module.").removeprefix("_orig_mod.")
                if plain and len(plain) > len(paths.get(module, "")):
                    paths[module] = plain
    return paths
