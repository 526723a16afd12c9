"""How much the answers of a trained network depend on the windows by which it sees a sample."""

from __future__ import annotations

import copy
import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from syncnorm.trainer.data.loader import Batch
from syncnorm.trainer.ranks.free_memory import free_bytes
from syncnorm.trainer.reporting.metric_spool import WINDOW_CHANGES, Spool
from syncnorm.trainer.storage.atomic_files import write_atomic
from syncnorm.trainer.storage.attempt_layout import AttemptFolders
from syncnorm.trainer.training.tasks.main_output import main_output
from syncnorm.trainer.training.tasks.task import Inferer, Task

logger = logging.getLogger(__name__)

FILE = "norm/windows.json"
MOST_SAMPLES = 4
MULTIPLES = (1, 4, 8, 16, 32)
"""The sides of a whole sample are cut to multiples of the first that the network takes: a U-Net does not take all."""
SPARE = 2
"""The memory that a whole sample needs is that of all outputs of modules times this, for outputs of functions."""


@dataclass(frozen=True)
class WindowChanges:
    """At what share of positions the class by windows is another than that of the reference.

    object_share: of the positions whose true class is not 0, the background; None where there are none. windows: how
    many were run. reference: `whole`, or the size of smaller windows, where a whole sample was too large.
    """

    share: float
    object_share: float | None
    samples: int
    positions: int
    windows: int
    reference: str | Sequence[int]


@dataclass
class _Observation:
    """windows: that went through the network, with so many positions, for which modules gave so many bytes."""

    windows: int = 0
    positions: int = 0
    bytes: int = 0


def measure(network: nn.Module, task: Task, batches: Iterable[Batch], device: torch.device) -> WindowChanges | str:
    """Of the first samples of `batches`; or why they can't be compared. network: in eval mode, on `device`."""
    if task.info.task not in ("segmentation", "classification"):
        return f"{task.info.task} has no classes"
    assert task.inferer is not None
    try:
        return _measure(network, task.inferer, list(islice(_samples(batches), MOST_SAMPLES)), device)
    except Exception as error:  # code that is not ours, on shapes that it may not be made for
        return f"{type(error).__name__}: {error}"


def record(found: WindowChanges | str, folders: AttemptFolders, step: int) -> Mapping[str, Any]:
    """Put what was found, or why nothing was, into the run's metrics and artifacts; gives it as plain values."""
    if isinstance(found, str):
        logger.warning("could not measure what windows change: %s", found)
        facts: dict[str, Any] = {"not_measured": found}
    else:
        than = "whole samples do" if found.reference == "whole" else f"windows of {found.reference} do"
        logger.info("windows give %.3g %% of the positions another class than %s", 100 * found.share, than)
        facts = asdict(found)
        spool = Spool(folders.spool)
        spool.append({WINDOW_CHANGES: found.share}, step)
        spool.close()
    write_atomic(folders.artifacts / FILE, json.dumps(facts, indent=1).encode())
    return facts


@torch.no_grad()
def _measure(
    network: nn.Module, inferer: Inferer, samples: Sequence[tuple[Tensor, Tensor]], device: torch.device
) -> WindowChanges | str:
    if not samples:
        return "the first worker has no validation samples"
    xs = [x.to(device) for x, _ in samples]
    seen = _Observation()
    with _observed(network, seen):
        by_windows = [_classes(inferer, x, network) for x in xs]
    found = _references(network, inferer, xs, seen, device)
    if found is None:
        return "a whole sample fits neither memory nor network, and the size of the windows can't be changed"
    references, reference = found
    changed = torch.cat([(_part(a, b) != b).flatten() for a, b in zip(by_windows, references, strict=True)]).double()
    truth = torch.cat([_part(y, b).flatten() for (_, y), b in zip(samples, references, strict=True)])
    objects = changed[truth > 0]
    return WindowChanges(
        share=float(changed.mean()),
        object_share=float(objects.mean()) if len(objects) else None,
        samples=len(samples),
        positions=len(changed),
        windows=seen.windows,
        reference=reference,
    )


def _samples(batches: Iterable[Batch]) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of one."""
    for batch in batches:
        yield from zip(batch.x.split(1), batch.y.split(1), strict=True)


def _classes(inferer: Inferer, x: Tensor, network: nn.Module) -> Tensor:
    return main_output(inferer(x, lambda part: main_output(network(part)))).argmax(1).cpu()


def _references(
    network: nn.Module, inferer: Inferer, xs: Sequence[Tensor], seen: _Observation, device: torch.device
) -> tuple[list[Tensor], str | list[int]] | None:
    """The classes of whole samples, or else by windows of half the size, and which of the two."""
    if (whole := _whole(network, xs, seen, device)) is not None:
        return whole, "whole"
    if (size := _window_size(inferer, xs[0].dim() - 2)) is None:
        return None
    half, smaller = [max(1, side // 2) for side in size], _Observation()
    with _observed(network, smaller):
        found = [_classes(_resized(inferer, half), x, network) for x in xs]
    return (found, half) if smaller.windows > seen.windows else None  # MONAI's SliceInferer sets its size back


def _whole(network: nn.Module, xs: Sequence[Tensor], seen: _Observation, device: torch.device) -> list[Tensor] | None:
    """The classes of whole samples, as far as the network takes them; None where they do not fit."""
    largest = max(math.prod(x.shape[2:]) for x in xs)
    if SPARE * seen.bytes / seen.positions * largest > free_bytes(device):
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
    other, name = copy.copy(inferer), "roi_size" if hasattr(inferer, "roi_size") else "size"
    setattr(other, name, size[0] if isinstance(getattr(inferer, name), int) else tuple(size))
    return other


def _cut(x: Tensor, multiple: int) -> Tensor:
    """With sides that are multiples; a side smaller than one stays."""
    for dim in range(2, x.dim()):
        length = x.shape[dim]
        x = x.narrow(dim, 0, length - length % multiple or length)
    return x


def _part(values: Tensor, like: Tensor) -> Tensor:
    return values[tuple(slice(length) for length in like.shape)]


@contextmanager
def _observed(network: nn.Module, seen: _Observation) -> Iterator[None]:
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
