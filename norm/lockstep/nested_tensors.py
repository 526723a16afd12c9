"""The tensors in what a network takes or gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor


def tensors_in(thing: Any) -> Iterator[Tensor]:
    """Those in lists, tuples and mappings, in order; anything else is passed by."""
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, Mapping | list | tuple):
        for part in thing.values() if isinstance(thing, Mapping) else thing:
            yield from tensors_in(part)
