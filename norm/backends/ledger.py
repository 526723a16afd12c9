"""Who calls: the header that travels with every row, so that workers in different layers find out at once."""

from __future__ import annotations

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
    """Workers did not meet: one skipped a layer, another has other channels there, or one is gone."""


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


class Ledger:
    """The headers of one group: layers are numbered by first use in it, and their calls counted."""

    def __init__(self) -> None:
        self._headers: weakref.WeakKeyDictionary[nn.Module, dict[tuple[str, int], bytearray]] = (
            weakref.WeakKeyDictionary()
        )
        self._anonymous: dict[tuple[str, int], bytearray] = {}
        self._paths: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
        self._num_layers = 0

    def header(self, layer: nn.Module | None, direction: Direction, length: int) -> bytearray:
        """The header of the next exchange of `layer`; valid until the next call."""
        headers = self._anonymous if layer is None else self._headers.get(layer)
        if headers is None:
            assert layer is not None
            headers = self._headers[layer] = {}
        header = headers.get((direction, length))
        if header is None:
            header = headers[direction, length] = self._new(layer, direction, length, first=not headers)
        _CALL.pack_into(header, 8, _CALL.unpack_from(header, 8)[0] + 1)
        return header

    def _new(self, layer: nn.Module | None, direction: Direction, length: int, *, first: bool) -> bytearray:
        index = 0
        if layer is not None:
            self._num_layers += first
            others = self._headers[layer]
            index = self._num_layers if first else _WORDS.unpack_from(next(iter(others.values())))[0] >> 1
        name = self._path(layer).encode()[-(HEADER_BYTES - _WORDS.size) :] if layer is not None else b""
        header = bytearray(HEADER_BYTES)
        _WORDS.pack_into(header, 0, index << 1 | _DIRECTIONS.index(direction), 0, length, zlib.crc32(name))
        header[_WORDS.size : _WORDS.size + len(name)] = name
        return header

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
