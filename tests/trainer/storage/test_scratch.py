"""Scratch folders go with their processes, however those end."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from syncnorm.trainer.storage.scratch import scratch

HOLD = """
import sys, time
from syncnorm.trainer.storage.scratch import scratch
with scratch() as folder:
    folder.mkdir()
    (folder / "state.pt").write_bytes(b"large")
    print(folder, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SYNCNORM_SCRATCH", str(tmp_path))
    return tmp_path


def test_folder_is_ones_own_and_goes_with_the_block(place: Path) -> None:
    with scratch() as one, scratch() as other:
        modes = [stat.S_IMODE(folder.parent.stat().st_mode) for folder in (one, other)]

    assert one != other
    assert modes == [0o700, 0o700]
    assert list(place.iterdir()) == []


def test_what_a_killed_process_left_is_removed_by_the_next_and_a_living_ones_stays(place: Path) -> None:
    command = [sys.executable, "-c", HOLD]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as victim:
        assert victim.stdout is not None
        left = Path(victim.stdout.readline().strip())
        with scratch():
            while_alive = (left / "state.pt").exists()
        victim.kill()

    with scratch():
        after = left.exists()

    assert (while_alive, after) == (True, False)
    assert list(place.iterdir()) == []
