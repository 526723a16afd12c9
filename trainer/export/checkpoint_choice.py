"""Which checkpoint of a job is exported: the last, the best that train.keep_best kept, or that of a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from syncnorm.trainer.contract.failure import ExportReason
from syncnorm.trainer.errors import NoExportError
from syncnorm.trainer.storage.sync import Mirror
from syncnorm.trainer.training import checkpoints
from syncnorm.trainer.training.checkpoints import Checkpoint

Which = Literal["last", "best"] | int
_OF_OURS = "network."
"""What the keys of a network begin with in a checkpoint of a built-in task."""


def find_checkpoint(folders: Sequence[Path], which: Which, mirror: Mirror) -> Checkpoint:
    """The verified checkpoint in one of `folders`, those of the job's attempts in order.

    Raises: NoExportError if there is none; CheckpointCorruptError if it does not verify.
    """
    newest = checkpoints.newest(list(folders), mirror)
    if newest is None:
        raise NoExportError(ExportReason.NOT_EXPORTABLE, "export.checkpoint: no checkpoint of the job is left.")
    if which == "last":
        return newest
    step = which if isinstance(which, int) else _best_step(checkpoints.load(newest.path, mirror))
    if step is None:
        text = "export.checkpoint: there is no best checkpoint, since no epoch with a score wrote one."
        raise NoExportError(ExportReason.NOT_EXPORTABLE, text)
    return _of_step(folders, step, mirror)


def _of_step(folders: Sequence[Path], step: int, mirror: Mirror) -> Checkpoint:
    known: list[str] = []
    for folder in reversed(folders):
        names = {path.name: path for path in mirror.children(folder)}
        if (path := names.get(checkpoints.name_of(step))) is not None:
            return checkpoints.fetch(path, mirror)
        known += names
    there = ", ".join(sorted(str(int(name.rpartition("-")[2])) for name in known if name.startswith("step-"))) or "none"
    raise NoExportError(
        ExportReason.NOT_EXPORTABLE,
        f"export.checkpoint: there is no checkpoint of step {step} any more; there is one of {there}.",
    )


def _best_step(state: Mapping[str, Any]) -> int | None:
    """As the callback that writes checkpoints has noted it: (score, step)."""
    for one in state.get("callbacks", {}).values():
        if isinstance(one, Mapping) and one.get("best"):
            return int(one["best"][1])
    return None


def weights_of(state: Mapping[str, Any], network: nn.Module) -> dict[str, Tensor]:
    """The state_dict of `network` in a checkpoint, where it may be part of a task of ours."""
    tensors: dict[str, Tensor] = dict(state["state_dict"])
    if set(tensors) == set(network.state_dict()):
        return tensors
    return {name.removeprefix(_OF_OURS): tensor for name, tensor in tensors.items() if name.startswith(_OF_OURS)}
