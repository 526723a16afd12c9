"""Files are listed and read in parts, and nothing that a job puts into its folder leads out of it."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from syncnorm.trainer.errors import StorageError
from syncnorm.trainer.storage.entries import PIECE_BYTES
from syncnorm.trainer.storage.storage import storage_at

EVERYWHERE = pytest.mark.parametrize("server", ["s3", "gs", "az"], indirect=True)
LARGE = random.Random(0).randbytes(2 * PIECE_BYTES + 3)


@EVERYWHERE
def test_folder_and_bucket_list_and_read_alike(bucket: str, tmp_path: Path) -> None:
    for storage in (storage_at(str(tmp_path)), storage_at(bucket)):
        storage.write("jobs/1/a/large", LARGE)
        storage.write("jobs/1/a/sub/empty", b"")
        storage.write("jobs/1/ab", b"other")

        entries = storage.entries("jobs/1/a")

        assert [(one.name, one.size_bytes) for one in entries] == [
            ("jobs/1/a/large", len(LARGE)),
            ("jobs/1/a/sub/empty", 0),
        ]
        assert storage.entry("jobs/1/a/large") == entries[0]
        assert b"".join(storage.pieces("jobs/1/a/large", 0, len(LARGE))) == LARGE
        assert b"".join(storage.pieces("jobs/1/a/large", 5, PIECE_BYTES + 9)) == LARGE[5 : PIECE_BYTES + 9]
        assert list(storage.pieces("jobs/1/a/sub/empty", 0, 0)) == []
        assert max(map(len, storage.pieces("jobs/1/a/large", 0, len(LARGE)))) == PIECE_BYTES
        assert storage.entries("jobs/2") == []
        for missing in ("jobs/1/none", "jobs/1/a"):
            with pytest.raises(FileNotFoundError):
                storage.entry(missing)
            with pytest.raises(FileNotFoundError):
                next(storage.pieces(missing, 0, 1))


@EVERYWHERE
def test_version_changes_with_the_content(bucket: str, tmp_path: Path) -> None:
    for storage in (storage_at(str(tmp_path)), storage_at(bucket)):
        storage.write("x", b"one")
        before = storage.entry("x")
        storage.write("x", b"two")

        assert storage.entry("x") != before


def test_file_that_is_shorter_than_it_was_is_an_error(tmp_path: Path) -> None:
    storage = storage_at(str(tmp_path))
    storage.write("x", b"short")

    with pytest.raises(StorageError, match="holds only 5 bytes of x, not 9"):
        list(storage.pieces("x", 0, 9))


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A storage with a job's folder in which links lead elsewhere."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "token").write_text("secret")
    job = tmp_path / "storage" / "jobs" / "1"
    job.mkdir(parents=True)
    (job / "file").write_text("fine")
    (job / "link").symlink_to(tmp_path / "secret" / "token")
    (job / "folder").symlink_to(tmp_path / "secret")
    (job / "loop").symlink_to(job / "loop")
    os.mkfifo(job / "pipe")
    (tmp_path / "storage" / "jobs" / "2").symlink_to(tmp_path / "secret")
    return tmp_path / "storage"


def test_links_and_pipes_are_not_listed(hostile: Path) -> None:
    storage = storage_at(str(hostile))

    assert [one.name for one in storage.entries("jobs/1")] == ["jobs/1/file"]
    assert storage.entries("jobs/1/folder") == storage.entries("jobs/2") == []


@pytest.mark.parametrize(
    "name",
    [
        "jobs/1/link",
        "jobs/1/folder/token",
        "jobs/1/loop",
        "jobs/1/pipe",
        "jobs/2/token",
        "jobs/1/../../../secret/token",
        "jobs/1/file/x",
        "jobs/1/" + "x" * 300,
    ],
)
def test_links_pipes_and_ways_up_are_not_read(hostile: Path, name: str) -> None:
    storage = storage_at(str(hostile))

    with pytest.raises(FileNotFoundError):
        storage.entry(name)
    with pytest.raises(FileNotFoundError):
        next(storage.pieces(name, 0, 1))


def test_storage_that_is_not_mounted_is_not_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")

    with pytest.raises(StorageError, match="symbolic links"):
        storage_at(str(tmp_path / "loop")).entries("jobs")
