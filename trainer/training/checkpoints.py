"""Checkpoints on storage: a folder of files with a manifest of their digests, which is written last.

A folder whose manifest does not match its files does not count. Training resumes from the newest one that verifies.
Paths are on this host; a mirror says which are on the storage, if that is elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from syncnorm.trainer.errors import CheckpointCorruptError, StorageError
from syncnorm.trainer.storage.atomic_files import (
    TEMPORARY,
    describe_space,
    sha256_of,
    sync_folder,
    write_atomic,
    write_with,
)
from syncnorm.trainer.storage.sync import IN_PLACE, Mirror

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
STATE = "state.pt"


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
    partial = folder / f"{TEMPORARY}{target.name}"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        folder.mkdir(exist_ok=True)  # not its parents: without the attempt's folder, its storage is not mounted
        partial.mkdir()
        write_with(partial / STATE, lambda file: torch.save(state, file))
        files = {STATE: {"sha256": sha256_of(partial / STATE), "bytes": (partial / STATE).stat().st_size}}
        manifest = {"step": step, "epoch": epoch, "world_size": world_size, "fence": fence, "files": files}
        sealed = manifest | {"sha256": _digest(manifest)}
        write_atomic(partial / MANIFEST, json.dumps(sealed, indent=1, sort_keys=True).encode())
        _remove(target)
        partial.rename(target)
        sync_folder(folder)
    except OSError as error:
        raise StorageError(
            f"the checkpoint of step {step} could not be written to {folder} ({describe_space(folder)}): {error}. "
            "The one before it is kept."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return verify(target)


def verify(path: Path) -> Checkpoint:
    """The checkpoint at `path`, with every file compared with its digest.

    Raises: CheckpointCorruptError naming the file that is missing or differs.
    """
    try:
        content = (path / MANIFEST).read_bytes()
        manifest = json.loads(content)
        if manifest.pop("sha256") != _digest(manifest):
            raise CheckpointCorruptError(f"checkpoint {path}: {MANIFEST} does not match its own digest")
        files = manifest["files"]
        for name, fact in files.items():
            if (path / name).stat().st_size != fact["bytes"] or sha256_of(path / name) != fact["sha256"]:
                raise CheckpointCorruptError(f"checkpoint {path}: {name} does not match its digest in {MANIFEST}")
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


def fetch(path: Path, mirror: Mirror) -> Checkpoint:
    """Fetch the checkpoint at `path` and verify it; one without a manifest is not fetched.

    Raises: CheckpointCorruptError; StorageError if the storage is unavailable, which says nothing about the checkpoint.
    """
    mirror.fetch(path / MANIFEST)
    if (path / MANIFEST).exists():
        mirror.fetch_all(path)
    return verify(path)


def publish(path: Path, mirror: Mirror) -> None:
    """Copy a checkpoint to the storage, where it counts once its manifest is there. Raises: StorageError."""
    try:
        mirror.publish_all(path, last=MANIFEST)
    except StorageError as error:
        raise type(error)(
            f"the checkpoint {path.name} could not be stored: {error} The one before it is kept."
        ) from error


def load(path: Path, mirror: Mirror = IN_PLACE, *, has_own_code: bool = False) -> dict[str, Any]:
    """The verified state at `path`. Tensors and plain values only: nothing in the file is executed.

    has_own_code: whether the job runs code of its user. Hooks and callbacks of that may have saved any object, such as
    a NumPy array, a Path or a dataclass, and what was saved must load again. Such a file is unpickled, which may
    execute what is in it: no more than the job's own code, which runs in this process anyway.
    """
    fetch(path, mirror)
    state = _read(path / STATE, has_own_code=has_own_code)
    mirror.forget(path)
    return state


def _read(file: Path, *, has_own_code: bool) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        if not has_own_code:
            raise
        state = torch.load(file, map_location="cpu", weights_only=False)
    return state


def newest(folders: list[Path], mirror: Mirror = IN_PLACE) -> Checkpoint | None:
    """The verified checkpoint with the most steps in any of `folders`; those that do not verify are logged and
    skipped."""
    found = sorted(
        (path for folder in folders for path in _candidates(folder, mirror)), key=lambda path: path.name, reverse=True
    )
    for path in found:
        try:
            return fetch(path, mirror)
        except CheckpointCorruptError as error:
            logger.warning("skipping a checkpoint that does not verify: %s", error)
            mirror.forget(path)
    return None


def retain(folder: Path, keep: int, spare: Collection[int] = (), mirror: Mirror = IN_PLACE) -> list[int]:
    """Delete all but the newest `keep` checkpoints and those of steps `spare`, and leftovers of unfinished writes.

    Returns the steps of the remaining ones, in order.
    """
    found = sorted(_candidates(folder, mirror), key=lambda path: path.name)
    kept = {*found[-keep:], *(_path(folder, step) for step in spare)}
    for path in found:
        if path not in kept:
            mirror.remove(path / MANIFEST)  # a half-deleted folder must not look like a checkpoint
            mirror.remove(path)
            _remove(path)
    for path in folder.glob(f"{TEMPORARY}*"):
        shutil.rmtree(path, ignore_errors=True)
    return [_step(path) for path in found if path in kept]


def _remove(path: Path) -> None:
    """Delete a checkpoint so that a half-deleted folder does not look like one."""
    if path.exists():
        aside = path.with_name(f"{TEMPORARY}gone-{path.name}")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


_PREFIX = "step-"


def name_of(step: int) -> str:
    """The folder of the checkpoint of a step."""
    return f"{_PREFIX}{step:010d}"


def _path(folder: Path, step: int) -> Path:
    return folder / name_of(step)


def _step(path: Path) -> int:
    return int(path.name.removeprefix(_PREFIX))


def _candidates(folder: Path, mirror: Mirror) -> Iterator[Path]:
    return (path for path in mirror.children(folder) if path.name.removeprefix(_PREFIX).isdigit())
