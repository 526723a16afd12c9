"""What the classes by windows are compared with: those of whole samples, or else by smaller windows."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from syncnorm.trainer.ranks.free_memory import free_bytes
from syncnorm.trainer.training.tasks.main_output import MainOutput, main_output
from syncnorm.trainer.training.tasks.sliding_window import SlidingWindow
from syncnorm.trainer.training.tasks.task import Inferer

MULTIPLES = (1, 4, 8, 16, 32)
"""The sides of a whole sample are cut to multiples of the first that the network takes: a U-Net does not take all."""
SPARE = 2
"""The memory that a whole sample needs is that of all outputs of modules times this, for outputs of functions."""


@dataclass
class Observation:
    """windows: that went through the network, with so many positions, for which modules gave so many bytes."""

    windows: int = 0
    positions: int = 0
    bytes: int = 0


def classes_of(inferer: Inferer, x: Tensor, network: nn.Module) -> Tensor:
    return main_output(inferer(x, MainOutput(network))).argmax(1).cpu()


References = tuple[list[Tensor], str | list[int]]
"""The classes to compare with, and how they came about: `whole`, or the size of smaller windows."""


def references_of(
    network: nn.Module, inferer: Inferer, xs: Sequence[Tensor], seen: Observation, device: torch.device
) -> References | None:
    """The classes of whole samples, or else by windows of half the size."""
    if (whole := _whole(network, xs, seen, device)) is not None:
        return whole, "whole"
    if (size := _window_size(inferer, xs[0].dim() - 2)) is None:
        return None
    half, smaller = [max(1, side // 2) for side in size], Observation()
    with observed(network, smaller):
        found = [classes_of(_resized(inferer, half), x, network) for x in xs]
    return (found, half) if smaller.windows > seen.windows else None  # MONAI's SliceInferer sets its size back


def fits(xs: Sequence[Tensor], seen: Observation, device: torch.device) -> bool:
    """Whether the network, as it was seen, has the memory for the largest of `xs` as a whole."""
    largest = max(math.prod(x.shape[2:]) for x in xs)
    return SPARE * seen.bytes / seen.positions * largest <= free_bytes(device)


def _whole(network: nn.Module, xs: Sequence[Tensor], seen: Observation, device: torch.device) -> list[Tensor] | None:
    """The classes of whole samples, as far as the network takes them; None where they do not fit."""
    if not fits(xs, seen, device):
        return None
    for multiple in MULTIPLES:
        try:
            return [main_output(network(_cut(x, multiple))).argmax(1).cpu() for x in xs]
        except torch.OutOfMemoryError:
            return None
        except Exception:  # of code that is not ours, about a size
            continue
    return None


def _window_size(inferer: Inferer, dims: int) -> tuple[int, ...] | None:
    """roi_size, as MONAI calls it, or size; None where it is not known, or not that of all dimensions."""
    given = getattr(inferer, "roi_size", getattr(inferer, "size", None))
    sides = (given,) * dims if isinstance(given, int) else tuple(given or ())
    return sides if len(sides) == dims and all(isinstance(side, int) and side > 0 for side in sides) else None


def _resized(inferer: Inferer, size: Sequence[int]) -> Inferer:
    if isinstance(inferer, SlidingWindow):
        overlap = inferer.windows.overlap
        return SlidingWindow(size, replace(inferer.windows, overlap=0.5 if overlap == "auto" else overlap))
    other, name = copy.copy(inferer), "roi_size" if hasattr(inferer, "roi_size") else "size"
    setattr(other, name, size[0] if isinstance(getattr(inferer, name), int) else tuple(size))
    return other


def _cut(x: Tensor, multiple: int) -> Tensor:
    """With sides that are multiples; a side smaller than one stays."""
    for dim in range(2, x.dim()):
        length = x.shape[dim]
        x = x.narrow(dim, 0, length - length % multiple or length)
    return x


def part_of(values: Tensor, like: Tensor) -> Tensor:
    return values[tuple(slice(length) for length in like.shape)]


@contextmanager
def observed(network: nn.Module, seen: Observation) -> Iterator[None]:
    def note_input(_: nn.Module, args: tuple[Any, ...]) -> None:
        seen.windows += len(args[0])
        seen.positions += len(args[0]) * math.prod(args[0].shape[2:])

    def note_output(_: nn.Module, __: Any, output: Any) -> None:
        seen.bytes += output.nbytes if isinstance(output, Tensor) else 0

    leaves = [module for module in network.modules() if next(module.children(), None) is None]
    handles = [network.register_forward_pre_hook(note_input)]
    handles += [module.register_forward_hook(note_output) for module in leaves]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
