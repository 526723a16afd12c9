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
COARSEST = 32
"""The sides of a whole sample are cut to multiples of it, or of a smaller power of 2 that divides those of a window:
a U-Net takes no others."""
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
    size = _window_size(inferer, samples[0][0].dim() - 2)
    xs = [_cut(x, size, leading=2).to(device) for x, _ in samples]
    seen = _Observation()
    with _observed(network, seen):
        by_windows = [_classes(inferer, x, network) for x in xs]
    reference: str | Sequence[int] = "whole"
    references = _whole(network, xs, seen, device)
    if references is None:
        if size is None:
            return "a whole sample fits neither memory nor network, and the inferer has no roi_size to make smaller"
        reference = [max(1, side // 2) for side in size]
        references = [_classes(_resized(inferer, reference), x, network) for x in xs]
    changed = torch.cat([(a != b).flatten() for a, b in zip(by_windows, references, strict=True)]).double()
    truth = torch.cat([_cut(y, size, leading=1).flatten() for _, y in samples])
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


def _whole(network: nn.Module, xs: Sequence[Tensor], seen: _Observation, device: torch.device) -> list[Tensor] | None:
    """The classes of whole samples; None where they do not fit."""
    largest = max(math.prod(x.shape[2:]) for x in xs)
    if SPARE * seen.bytes / seen.positions * largest > free_bytes(device):
        return None
    try:
        return [main_output(network(x)).argmax(1).cpu() for x in xs]
    except (RuntimeError, ValueError):  # a network for one size only
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


def _cut(sample: Tensor, size: Sequence[int] | None, *, leading: int) -> Tensor:
    """With sides that the network takes, see COARSEST. leading: dimensions before the spatial ones."""
    if size is None or sample.dim() != leading + len(size):
        return sample
    for dim, side in enumerate(size, leading):
        length = sample.shape[dim]
        multiple = min(side & -side, COARSEST)  # the largest power of 2 that divides the side
        sample = sample.narrow(dim, 0, length - length % multiple or length)
    return sample


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
