"""Checkpoints on storage: a folder of files with a manifest of their digests, which is written last.

A folder without a manifest that fits its files does not count. The newest one that verifies is the one to resume from.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainer.files import StorageError, describe_space, sha256_of, sync_folder, write_atomic, write_with

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
STATE = "state.pt"


class CheckpointCorruptError(RuntimeError):
    """A checkpoint whose files do not fit its manifest."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint. digest: sha256 of its manifest."""

    path: Path
    step: int
    epoch: int
    world_size: int
    fence: str
    digest: str
    size_bytes: int


def write(folder: Path, state: dict[str, Any], *, step: int, epoch: int, world_size: int, fence: str) -> Checkpoint:
    """Write `state` to `folder/step-{step}`; readers see it only once it is whole.

    Raises: StorageError where the storage is full or broken; nothing half-written is left behind then.
    """
    target = _path(folder, step)
    beside = folder / f".tmp-{target.name}"
    shutil.rmtree(beside, ignore_errors=True)
    try:
        beside.mkdir(parents=True)
        write_with(beside / STATE, lambda file: torch.save(state, file))
        files = {STATE: {"sha256": sha256_of(beside / STATE), "bytes": (beside / STATE).stat().st_size}}
        manifest = {"step": step, "epoch": epoch, "world_size": world_size, "fence": fence, "files": files}
        sealed = manifest | {"sha256": _digest(manifest)}
        write_atomic(beside / MANIFEST, json.dumps(sealed, indent=1, sort_keys=True).encode())
        _remove(target)
        beside.rename(target)
        sync_folder(folder)
    except OSError as error:
        raise StorageError(
            f"the checkpoint of step {step} could not be written to {folder} ({describe_space(folder)}): {error}. "
            "The one before it is kept."
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return verify(target)


def verify(path: Path) -> Checkpoint:
    """The checkpoint at `path`, every file held against its digest.

    Raises: CheckpointCorruptError naming the file that is missing or differs.
    """
    try:
        content = (path / MANIFEST).read_bytes()
        manifest = json.loads(content)
        if manifest.pop("sha256") != _digest(manifest):
            raise CheckpointCorruptError(f"checkpoint {path}: {MANIFEST} does not fit its own digest")
        files = manifest["files"]
        for name, fact in files.items():
            if (path / name).stat().st_size != fact["bytes"] or sha256_of(path / name) != fact["sha256"]:
                raise CheckpointCorruptError(f"checkpoint {path}: {name} does not fit its digest in {MANIFEST}")
        return Checkpoint(
            path=path,
            step=manifest["step"],
            epoch=manifest["epoch"],
            world_size=manifest["world_size"],
            fence=manifest["fence"],
            digest=hashlib.sha256(content).hexdigest(),
            size_bytes=sum(fact["bytes"] for fact in files.values()),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointCorruptError(f"checkpoint {path}: {error}") from error


def load(path: Path) -> dict[str, Any]:
    """The verified state at `path`. Tensors and plain values only: nothing in the file is executed."""
    verify(path)
    state: dict[str, Any] = torch.load(path / STATE, map_location="cpu", weights_only=True)
    return state


def newest(folders: list[Path]) -> Checkpoint | None:
    """The verified checkpoint with the most steps in any of `folders`; those that fail are logged and passed over."""
    found = sorted(
        (path for folder in folders for path in _candidates(folder)), key=lambda path: path.name, reverse=True
    )
    for path in found:
        try:
            return verify(path)
        except CheckpointCorruptError as error:
            logger.warning("passing over a checkpoint: %s", error)
    return None


def retain(folder: Path, keep: int, spare: int | None = None) -> None:
    """Delete all but the newest `keep` checkpoints and that of step `spare`, and leftovers of unfinished writes."""
    for path in sorted(_candidates(folder), key=lambda path: path.name)[:-keep]:
        if spare is None or path != _path(folder, spare):
            _remove(path)
    for path in folder.glob(".tmp-*"):
        shutil.rmtree(path, ignore_errors=True)


def _remove(path: Path) -> None:
    """Whole or not at all: a folder that is half deleted should not look like a checkpoint."""
    if path.exists():
        aside = path.with_name(f".tmp-gone-{path.name}")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:010d}"


def _candidates(folder: Path) -> Iterator[Path]:
    return folder.glob("step-*")
