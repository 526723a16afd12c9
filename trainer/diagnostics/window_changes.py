"""How much the answers of a trained network depend on the windows by which it sees a sample."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor, nn

from syncnorm.trainer.data.info import DataInfo
from syncnorm.trainer.data.loader import Batch
from syncnorm.trainer.diagnostics.window_references import (
    Observation,
    References,
    classes_of,
    fits,
    observed,
    part_of,
    references_of,
)
from syncnorm.trainer.reporting.metric_spool import WINDOW_CHANGES, Spool
from syncnorm.trainer.storage.atomic_files import write_atomic
from syncnorm.trainer.storage.attempt_layout import AttemptFolders
from syncnorm.trainer.training.tasks.joint_windows import JointWindows
from syncnorm.trainer.training.tasks.receptive_field import has_room, receptive_field
from syncnorm.trainer.training.tasks.sliding_window import SlidingWindow
from syncnorm.trainer.training.tasks.task import Inferer, Task

logger = logging.getLogger(__name__)

FILE = "norm/windows.json"
MOST_SAMPLES = 4
LARGEST_OVERLAP = 0.5
"""Of windows that show all that the network looks at: a volume takes eight times as many, as by default."""


@dataclass(frozen=True)
class WindowChanges:
    """At what share of positions the class by windows is another than that of the reference.

    object_share: of the positions whose true class is not 0, the background; None where there are none. windows: how
    many were run. reference: `whole`, or the size of smaller windows, where a whole sample was too large. validated:
    how the scores of validation came about.
    statistics_share: the same as share by windows that overlap so far that each position that counts has all around it
    that the network looks at, so that statistics of the sample alone differ. None where that takes an overlap of more
    than one half, or is not known.
    """

    share: float
    object_share: float | None
    samples: int
    positions: int
    windows: int
    reference: str | Sequence[int]
    validated: Literal["windows", "joint"] = "windows"
    statistics_share: float | None = None


def measure(network: nn.Module, task: Task, batches: Iterable[Batch], device: torch.device) -> WindowChanges | str:
    """Of the first samples of `batches`; or why they can't be compared. network: in eval mode, on `device`."""
    if task.info.task not in ("segmentation", "classification"):
        return f"{task.info.task} has no classes"
    assert task.inferer is not None
    samples = list(islice(_samples(batches), MOST_SAMPLES))
    try:
        found = _measure(network, task, samples, device)
        is_ours = isinstance(task.inferer, SlidingWindow | JointWindows)
        if isinstance(found, str) or not is_ours or found.reference != "whole":
            return found
        return _with_statistics_share(found, network, task.info, samples, device)
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
    network: nn.Module, task: Task, samples: Sequence[tuple[Tensor, Tensor]], device: torch.device
) -> WindowChanges | str:
    if not samples:
        return "the first worker has no validation samples"
    assert task.inferer is not None
    inferer, joint = _inferers(task.inferer, task.info)
    is_joint = isinstance(task.inferer, JointWindows)
    xs = [x.to(device) for x, _ in samples]
    seen = Observation()
    with observed(network, seen):
        by_windows = [classes_of(inferer, x, network) for x in xs]
    if joint is not None and (is_joint or device.type != "cpu" or fits(xs, seen, device)):
        found: References | None = [classes_of(joint, x, network) for x in xs], "whole"
    else:
        found = references_of(network, inferer, xs, seen, device)
    if found is None:
        return "a whole sample fits neither memory nor network, and the size of the windows can't be changed"
    references, reference = found
    changed = _changed(by_windows, references)
    truth = torch.cat([part_of(y, b).flatten() for (_, y), b in zip(samples, references, strict=True)])
    objects = changed[truth > 0]
    return WindowChanges(
        share=float(changed.mean()),
        object_share=float(objects.mean()) if len(objects) else None,
        samples=len(samples),
        positions=len(changed),
        windows=seen.windows,
        reference=reference,
        validated="joint" if is_joint else "windows",
    )


def _inferers(used: Inferer, info: DataInfo) -> tuple[Inferer, JointWindows | None]:
    """The windows, and what gives the answers of the whole where the receptive field of the network is known."""
    windows, size = info.windows, info.shape[1:]
    if windows is None or windows.field is None:
        return used, None
    joint = JointWindows(size, windows.field)
    return SlidingWindow(size, windows) if isinstance(used, JointWindows) else used, joint


@torch.no_grad()
def _with_statistics_share(
    found: WindowChanges,
    network: nn.Module,
    info: DataInfo,
    samples: Sequence[tuple[Tensor, Tensor]],
    device: torch.device,
) -> WindowChanges:
    assert info.windows is not None
    try:
        field = info.windows.field or receptive_field(network, info.shape)
    except Exception:  # it looks at everything, so no window shows it all, or takes no strips
        return found
    if not has_room(info.shape[1:], field.reach, LARGEST_OVERLAP):
        return found
    windows = replace(info.windows, overlap="auto", field=field)
    separate, joint = SlidingWindow(info.shape[1:], windows), JointWindows(info.shape[1:], field)
    xs = [x.to(device) for x, _ in samples]
    changed = _changed(*([classes_of(inferer, x, network) for x in xs] for inferer in (separate, joint)))
    return replace(found, statistics_share=float(changed.mean()))


def _changed(classes: Sequence[Tensor], references: Sequence[Tensor]) -> Tensor:
    """1 for each position of the references where the class is another one."""
    return torch.cat([(part_of(a, b) != b).flatten() for a, b in zip(classes, references, strict=True)]).double()


def _samples(batches: Iterable[Batch]) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of one."""
    for batch in batches:
        yield from zip(batch.x.split(1), batch.y.split(1), strict=True)
