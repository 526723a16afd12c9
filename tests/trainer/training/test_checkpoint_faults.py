"""Whatever happens to checkpoints on disk: the newest one that is whole is used, and never one that is not."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from syncnorm.trainer.errors import CheckpointCorruptError, StorageError
from syncnorm.trainer.training import checkpoints
from syncnorm.trainer.training.checkpoints import MANIFEST, STATE
from tests.trainer.conftest import Disk

STEPS = (10, 20, 30)
Load = Callable[[Path], dict[str, Any] | None]


def state(step: int) -> dict[str, Any]:
    """Every value names its step, so that a mixture shows."""
    return {"w": torch.full((5000,), float(step)), "loops": {"step": step}, "names": [f"at {step}"] * 50}


def write(folder: Path, step: int) -> None:
    checkpoints.write(folder, state(step), step=step, epoch=0, world_size=2, fence="f")


def newest(folder: Path) -> dict[str, Any] | None:
    """What a job would go on from, as the driver finds and a rank loads it."""
    found = checkpoints.newest([folder])
    return checkpoints.load(found.path) if found else None


def newest_by_name(folder: Path) -> dict[str, Any] | None:
    """The planted bug: a loader that takes the newest folder for good."""
    path = max(folder.glob("step-*"), key=lambda each: each.name)
    try:
        loaded: dict[str, Any] = torch.load(path / STATE, weights_only=True)
    except Exception as error:
        raise CheckpointCorruptError(str(error)) from error
    return loaded


def truncate(path: Path, draw: random.Random) -> None:
    os.truncate(path, path.stat().st_size * draw.randrange(16) // 16)


def flip_a_bit(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def delete(path: Path, draw: random.Random) -> None:
    path.unlink()


def forbid(path: Path, draw: random.Random) -> None:
    """EACCES for anybody; root reads all the same, and a folder in a file's place can be read by nobody."""
    path.unlink()
    path.mkdir()


def swap(path: Path, draw: random.Random) -> None:
    """The file of an older checkpoint, whole in itself."""
    path.write_bytes((path.parent.parent / f"step-{STEPS[0]:010d}" / path.name).read_bytes())


FAULTS = (truncate, flip_a_bit, delete, forbid, swap)


def assert_only_whole_ones_are_used(folder: Path, seed: int, load: Load) -> None:
    """Damage one file of the newest checkpoint, or of the newest two, and look at what is loaded."""
    for step in STEPS:
        write(folder, step)
    draw = random.Random(seed)
    damaged = STEPS[-draw.randint(1, 2) :]
    for step in damaged:
        path = folder / f"step-{step:010d}" / draw.choice([STATE, MANIFEST])
        fault = draw.choice(FAULTS)
        before = path.read_bytes()
        fault(path, draw)
        assert not path.is_file() or path.read_bytes() != before

    loaded = load(folder)

    expected = state(STEPS[-1 - len(damaged)])
    assert loaded is not None
    assert loaded["loops"] == expected["loops"], f"seed {seed}"
    assert torch.equal(loaded["w"], expected["w"])
    assert loaded["names"] == expected["names"]


@pytest.mark.parametrize("seed", range(24))
def test_damaged_checkpoints_are_passed_over(tmp_path: Path, seed: int) -> None:
    assert_only_whole_ones_are_used(tmp_path, seed, newest)


def test_the_check_notices_a_loader_that_trusts_names(tmp_path: Path) -> None:
    noticed = 0
    for seed in range(24):
        try:
            assert_only_whole_ones_are_used(tmp_path / str(seed), seed, newest_by_name)
        except (AssertionError, CheckpointCorruptError):
            noticed += 1

    assert noticed == 24


@pytest.mark.chaos
def test_five_hundred_damaged_checkpoints(tmp_path: Path) -> None:
    for seed in range(100, 600):
        assert_only_whole_ones_are_used(tmp_path / str(seed), seed, newest)


WRITER = """
import sys
from pathlib import Path
from tests.trainer.training.test_checkpoint_faults import write
folder = Path(sys.argv[1])
print("ready", flush=True)
for step in range(1, 1_000_000):
    write(folder, step)
    print(step, flush=True)
"""


def kill_a_writer(folder: Path, kills: int, seed: int) -> None:
    """Kill a process that writes checkpoints, again and again, and look at what it left behind."""
    draw = random.Random(seed)
    for _ in range(kills):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        time.sleep(draw.uniform(0.0, 0.05))  # anywhere within the first few writes
        writer.send_signal(signal.SIGKILL)
        written = [int(line) for line in writer.stdout.read().splitlines()]
        writer.wait()
        writer.stdout.close()
        loaded = newest(folder)
        if loaded is not None:
            assert torch.equal(loaded["w"], state(loaded["loops"]["step"])["w"])
        assert not written or (loaded is not None and loaded["loops"]["step"] >= max(written))
        # Nothing that looks like a checkpoint is half of one.
        for path in folder.glob("step-*"):
            assert json.loads((path / MANIFEST).read_bytes())["files"].keys() == {STATE}
        checkpoints.retain(folder, 2)
        assert len(list(folder.iterdir())) <= 2


def test_killed_while_writing(tmp_path: Path) -> None:
    kill_a_writer(tmp_path, kills=2, seed=0)


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_killed_while_writing_sixty_times(tmp_path: Path) -> None:
    kill_a_writer(tmp_path, kills=60, seed=1)


@pytest.mark.chaos
def test_a_disk_that_fills_at_any_byte(small_disk: Disk) -> None:
    folder = small_disk.folder / "c"
    write(folder, 10)
    for leave_bytes in range(0, 40_000, 400):
        small_disk.fill(leave_bytes=leave_bytes)
        try:
            write(folder, 20)
        except StorageError:
            loaded = newest(folder)
            assert loaded is not None
            assert loaded["loops"]["step"] == 10
            assert [path.name for path in folder.iterdir()] == ["step-0000000010"]
        else:
            shutil.rmtree(folder / "step-0000000020")
        small_disk.empty()
