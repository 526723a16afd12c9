"""Who reaches the files and sockets of the embedded Ray."""

from __future__ import annotations

import stat
import tempfile
from pathlib import Path

import pytest

from syncnorm.service.local.programs import local_ray
from tests.service.conftest import eventually

pytestmark = pytest.mark.timeout(180)
LONGEST = 107
"""Bytes in the path of a Unix socket."""


def sockets(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_socket()]


def test_other_users_reach_nothing_and_a_long_temporary_folder_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory(prefix="temporary-files-of-ann-", dir="/tmp") as temporary:
        monkeypatch.setattr(tempfile, "tempdir", temporary)
        with local_ray(tmp_path):
            folder = Path((tmp_path / "ray.folder").read_text())
            eventually(lambda: {"raylet", "plasma_store"} <= {path.name for path in sockets(folder)})

            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            assert max(len(str(path)) for path in sockets(folder)) <= LONGEST
        assert not folder.exists()
