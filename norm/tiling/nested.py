"""Outputs of a network: one tensor, or tensors in lists, tuples and mappings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor


def leaves(output: Any) -> Iterator[Tensor]:
    """Its tensors in order. Raises: ValueError for anything else in it."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping | list | tuple):
        for part in output.values() if isinstance(output, Mapping) else output:
            yield from leaves(part)
    else:
        raise ValueError(
            "norm.tiled needs a model that gives tensors, or lists, tuples and mappings of them, got "
            f"{type(output).__name__}. Wrap the model in one that gives the tensors you need."
        )


def replaced(output: Any, tensors: Iterator[Tensor]) -> Any:
    """The same structure with the next of `tensors` for each. A mapping becomes a dict."""
    if isinstance(output, Tensor):
        return next(tensors)
    if isinstance(output, Mapping):
        return {name: replaced(part, tensors) for name, part in output.items()}
    parts = [replaced(part, tensors) for part in output]
    make: Callable[..., Any] = type(output)
    return make(*parts) if hasattr(output, "_fields") else make(parts)
