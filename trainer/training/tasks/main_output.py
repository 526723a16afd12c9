"""The tensor that counts in what a network returns, and the others, by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor, nn

NAMES = ("out", "logits")


def named_outputs(output: Any) -> dict[str, Tensor]:
    """The tensors of an output by key, field or position; the main one first.

    The main output is called `out` or `logits`, as torchvision's segmentation networks and transformers name it, or
    else is the first one.
    Raises: ValueError if there is no tensor.
    """
    found = {name: value for name, value in _items(output) if isinstance(value, Tensor)}
    if not found:
        names = ", ".join(name for name, _ in _items(output))
        what = f"{type(output).__name__} of {names}" if names else type(output).__name__
        raise ValueError(
            f"model must return a tensor, or a dict, dataclass or tuple with one, got a {what}. Return the scores "
            f"under one of the names {', '.join(NAMES)}, or as the first item."
        )
    main = next((name for name in NAMES if name in found), next(iter(found)))
    return {main: found.pop(main)} | found


def main_output(output: Any) -> Tensor:
    """The tensor that is scored. Raises: ValueError if there is none."""
    return output if isinstance(output, Tensor) else next(iter(named_outputs(output).values()))


class MainOutput(nn.Module):
    """`network`, which gives the tensor that is scored alone. Paths of modules are those of `network`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.training = network.training

    def forward(self, *args: Any) -> Tensor:
        return main_output(self.network(*args))

    def named_modules(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Module]]:
        yield from self.network.named_modules(*args, **kwargs)


def _items(output: Any) -> list[tuple[str, Any]]:
    if isinstance(output, Tensor):
        return [("out", output)]
    if isinstance(output, Mapping):
        return [(str(name), value) for name, value in output.items()]
    if is_dataclass(output):
        return [(each.name, getattr(output, each.name)) for each in fields(output)]
    if isinstance(output, tuple | list):
        names = getattr(output, "_fields", range(len(output)))
        return [(str(name), value) for name, value in zip(names, output, strict=True)]
    return []
