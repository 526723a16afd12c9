"""Checkpoints are whole or do not count."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from syncnorm.trainer.errors import CheckpointCorruptError, StorageError
from syncnorm.trainer.training import checkpoints


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for step in (10, 20, 30):
        checkpoints.write(
            tmp_path, {"w": torch.full((1000,), step)}, step=step, epoch=step // 10, world_size=2, fence="f"
        )
    return tmp_path


def test_what_was_written_is_read_back(folder: Path) -> None:
    newest = checkpoints.newest([folder])

    assert newest is not None
    assert (newest.step, newest.epoch, newest.world_size) == (30, 3, 2)
    assert torch.equal(checkpoints.load(newest.path)["w"], torch.full((1000,), 30))


@pytest.mark.parametrize("sixteenth", range(16))
def test_a_truncated_checkpoint_is_passed_over_for_the_one_before(folder: Path, sixteenth: int) -> None:
    state = folder / "step-0000000030" / checkpoints.STATE
    state.write_bytes(state.read_bytes()[: state.stat().st_size * sixteenth // 16])

    newest = checkpoints.newest([folder])

    assert newest is not None
    assert newest.step == 20


def test_one_flipped_bit_is_noticed(folder: Path) -> None:
    state = folder / "step-0000000030" / checkpoints.STATE
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)

    with pytest.raises(CheckpointCorruptError, match=r"state.pt does not match its digest"):
        checkpoints.load(state.parent)


def test_objects_are_loaded_only_where_the_user_runs_code_of_their_own(tmp_path: Path) -> None:
    kept = {"place": Path("notes"), "scores": np.float64(0.5)}
    found = checkpoints.write(tmp_path, kept, step=1, epoch=1, world_size=1, fence="f")

    with pytest.raises(pickle.UnpicklingError):
        checkpoints.load(found.path)

    assert checkpoints.load(found.path, has_own_code=True) == kept


@pytest.mark.parametrize("damage", ["missing", "half", "not json"])
def test_a_checkpoint_without_a_good_manifest_does_not_exist(folder: Path, damage: str) -> None:
    manifest = folder / "step-0000000030" / checkpoints.MANIFEST
    content = manifest.read_bytes()
    manifest.unlink()
    if damage == "half":
        manifest.write_bytes(content[: len(content) // 2])
    if damage == "not json":
        manifest.write_text("[]")

    newest = checkpoints.newest([folder])

    assert newest is not None
    assert newest.step == 20


def test_a_failed_write_leaves_nothing_behind(folder: Path) -> None:
    class Unwritable:
        def __reduce__(self) -> str:
            raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match="No space left"):
        checkpoints.write(folder, {"w": Unwritable()}, step=40, epoch=4, world_size=2, fence="f")

    assert sorted(path.name for path in folder.iterdir()) == ["step-0000000010", "step-0000000020", "step-0000000030"]


def test_the_newest_are_kept(folder: Path) -> None:
    (folder / ".tmp-step-0000000040").mkdir()

    assert checkpoints.retain(folder, 2) == [20, 30]

    assert sorted(path.name for path in folder.iterdir()) == ["step-0000000020", "step-0000000030"]


def test_checkpoint_that_is_still_wanted_stays(folder: Path) -> None:
    assert checkpoints.retain(folder, 1, {10}) == [10, 30]

    assert sorted(path.name for path in folder.iterdir()) == ["step-0000000010", "step-0000000030"]


def test_loading_executes_nothing(folder: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return print, ("executed",)

    checkpoints.write(folder, {"w": Evil()}, step=40, epoch=4, world_size=2, fence="f")

    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        checkpoints.load(folder / "step-0000000040")


def test_checkpoint_is_not_written_beside_a_storage_that_is_not_mounted(tmp_path: Path) -> None:
    folder = tmp_path / "storage" / "jobs" / "j" / "attempts" / "1" / "checkpoints"

    with pytest.raises(StorageError, match="could not be written"):
        checkpoints.write(folder, {}, step=1, epoch=0, world_size=1, fence="f")

    assert list(tmp_path.iterdir()) == []
