"""Which checkpoint of a job is exported: the last, the best that train.keep_best kept, or that of a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule

from syncnorm.trainer.contract.failure import ExportReason
from syncnorm.trainer.errors import NoExportError
from syncnorm.trainer.storage.sync import Mirror
from syncnorm.trainer.training import checkpoints
from syncnorm.trainer.training.averaging.averaged_weights import AVERAGE
from syncnorm.trainer.training.checkpoints import Checkpoint

Which = Literal["last", "best"] | int
_OF_OURS = "network."
"""What the keys of a network begin with in a checkpoint of a module of ours."""


def find_checkpoint(folders: Sequence[Path], which: Which, mirror: Mirror, *, has_own_code: bool = False) -> Checkpoint:
    """The verified checkpoint in one of `folders`, those of the job's attempts in order.

    has_own_code: as for `checkpoints.load`.

    Raises: NoExportError if there is none; CheckpointCorruptError if it does not verify.
    """
    newest = checkpoints.newest(list(folders), mirror)
    if newest is None:
        raise NoExportError(ExportReason.NOT_EXPORTABLE, "export.checkpoint: no checkpoint of the job is left.")
    if which == "last":
        return newest
    if isinstance(which, int):
        return _of_step(folders, which, mirror)
    step = best_step(checkpoints.load(newest.path, mirror, has_own_code=has_own_code))
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


def best_step(state: Mapping[str, Any]) -> int | None:
    """As the callback that writes checkpoints has noted it: (score, step)."""
    for one in state.get("callbacks", {}).values():
        if isinstance(one, Mapping) and one.get("best"):
            return int(one["best"][1])
    return None


def load_weights(
    module: LightningModule, checkpoint: Checkpoint, mirror: Mirror, *, has_own_code: bool
) -> Mapping[str, Any] | None:
    """Put the weights of a checkpoint into `module`, as Lightning does it: with the module's on_load_checkpoint and
    strict_loading. With train.average these are the averaged ones; what is known of the average is returned."""
    state = checkpoints.load(checkpoint.path, mirror, has_own_code=has_own_code)
    module.on_load_checkpoint(state)
    module.load_state_dict(_tensors_of(state, module), strict=module.strict_loading)
    average: Mapping[str, Any] | None = state.get(AVERAGE)
    return average


def _tensors_of(state: Mapping[str, Any], module: LightningModule) -> dict[str, Any]:
    """The state_dict of `module`. Earlier versions wrapped a user's module in one of ours."""
    tensors: dict[str, Any] = dict(state["state_dict"])
    if tensors.keys() & module.state_dict().keys():
        return tensors
    return {name.removeprefix(_OF_OURS): tensor for name, tensor in tensors.items()}
