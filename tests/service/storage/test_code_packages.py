"""Uploaded code: what is taken, what is refused, and that it reaches the path of the workers."""

from __future__ import annotations

import hashlib
import importlib
import io
import random
import stat
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from syncnorm.service.cli.code_folder import pack
from syncnorm.service.storage.code_packages import MAX_BYTES, MAX_FILES, PackageError, check
from syncnorm.trainer.user_code.package import put_on_path, unpack
from tests.helpers.service.api import SPEC, api
from tests.helpers.service.world import World


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[TestClient, World]]:
    with api(tmp_path, allow_code=True) as found:
        yield found


def archive(*entries: tuple[str | zipfile.ZipInfo, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", compression) as opened:
        for name, content in entries:
            opened.writestr(name, content)
    return made.getvalue()


def special(name: str, kind: int) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.create_system = 3
    entry.external_attr = (kind | 0o644) << 16
    return entry


def raw_name(name: bytes) -> bytes:
    """An archive whose file has a name that zipfile would not write."""
    return archive(("x" * len(name), b"text")).replace(b"x" * len(name), name)


def encrypted() -> bytes:
    made = bytearray(archive(("a.py", b"text")))
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        made[made.index(mark) + offset] |= 1
    return bytes(made)


def lying_about_size() -> bytes:
    made = bytearray(archive(("a.py", b"0123456789"), compression=zipfile.ZIP_STORED))
    at = made.index(b"PK\x01\x02")
    made[at + 24 : at + 28] = (200).to_bytes(4, "little")
    return bytes(made)


GOOD = archive(("mine/__init__.py", b""), ("mine/net.py", b"answer = 42\n"))
BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "not a zip": (lambda: b"import os", "readable zip archive"),
    "empty": (lambda: b"", "readable zip archive"),
    "cut off": (lambda: GOOD[:-9], "readable zip archive"),
    "flipped bit": (lambda: GOOD.replace(b"PK\x01\x02", b"PK\x01\x03", 1), "readable zip archive"),
    "parent": (lambda: archive(("../out.py", b"")), "plain relative paths"),
    "parent inside": (lambda: archive(("a/../../out.py", b"")), "plain relative paths"),
    "absolute": (lambda: archive(("/etc/cron.d/x", b"")), "plain relative paths"),
    "drive": (lambda: archive(("C:/x.py", b"")), "plain relative paths"),
    "backslash": (lambda: raw_name(b"..\\out.py"), "plain relative paths"),
    "NUL": (lambda: raw_name(b"a.py\x00.txt"), "control characters"),
    "newline": (lambda: archive(("a\nb.py", b"")), "control characters"),
    "long name": (lambda: archive(("x" * 401, b"")), "plain relative paths"),
    "symlink": (lambda: archive((special("link", stat.S_IFLNK), b"/etc/passwd")), "no links"),
    "device": (lambda: archive((special("null", stat.S_IFCHR), b"")), "no links"),
    "pipe": (lambda: archive((special("pipe", stat.S_IFIFO), b"")), "no links"),
    "our name": (lambda: archive(("a.py", b""), ("syncnorm.py", b"")), "module named syncnorm, got 'syncnorm.py'"),
    "our package": (lambda: archive(("./syncnorm/__init__.py", b"")), "module named syncnorm"),
    "our name in C": (lambda: archive(("syncnorm.cpython-311-x86_64-linux-gnu.so", b"")), "module named syncnorm"),
    "encrypted": (encrypted, "must not be encrypted"),
    "bzip2": (lambda: archive(("a.py", b"x" * 99), compression=zipfile.ZIP_BZIP2), "stored or deflated"),
    "lzma": (lambda: archive(("a.py", b"x" * 99), compression=zipfile.ZIP_LZMA), "stored or deflated"),
    "size lie": (lying_about_size, "readable zip archive|does not have the size"),
    "many files": (lambda: archive(*((f"{n}.py", b"") for n in range(MAX_FILES + 1))), f"more than {MAX_FILES} files"),
    "bomb": (lambda: archive(("zeros", bytes(40 * 2**20))), "times its size"),
    "too large": (lambda: archive(*((f"{n}", bytes(2**26)) for n in range(3))), f"{MAX_BYTES} bytes together"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_archive_is_refused_with_the_reason(name: str) -> None:
    make, reason = BAD[name]

    with pytest.raises(PackageError, match=reason):
        check(io.BytesIO(make()))


@pytest.mark.filterwarnings("ignore:Duplicate name")  # zipfile's, of the archive that is to be refused
def test_name_that_occurs_twice_is_refused() -> None:
    with pytest.raises(PackageError, match=r"'a.py' occurs twice"):
        check(io.BytesIO(archive(("a.py", b"1"), ("a.py", b"2"))))


def _harm(count: int, seed: int) -> None:
    """Bytes changed at random: taken or refused, never another error."""
    chance = random.Random(seed)
    for _ in range(count):
        harmed = bytearray(GOOD)
        for _ in range(chance.randint(1, 4)):
            harmed[chance.randrange(len(harmed))] = chance.randrange(256)
        try:
            assert check(io.BytesIO(bytes(harmed))) <= MAX_FILES
        except PackageError:
            continue


def test_damaged_archives_are_refused_and_nothing_else_happens() -> None:
    _harm(300, seed=1)


@pytest.mark.chaos
def test_very_many_damaged_archives_are_refused_and_nothing_else_happens() -> None:
    _harm(100_000, seed=2)


def put(client: TestClient, content: bytes, digest: str | None = None) -> tuple[int, str]:
    digest = digest or hashlib.sha256(content).hexdigest()
    answer = client.put(f"/v1/packages/{digest}", content=content, headers={"Content-Type": "application/zip"})
    return answer.status_code, answer.json().get("code", answer.json().get("package", ""))


def test_package_is_kept_once_under_its_digest(running: tuple[TestClient, World], tmp_path: Path) -> None:
    client, _ = running
    digest = hashlib.sha256(GOOD).hexdigest()

    first, second = put(client, GOOD), put(client, GOOD)

    assert (first, second) == ((201, f"sha256:{digest}"), (200, f"sha256:{digest}"))
    assert [path.name for path in (tmp_path / "packages").iterdir()] == [f"{digest}.zip"]


def test_refused_upload_leaves_nothing(running: tuple[TestClient, World], tmp_path: Path) -> None:
    client, _ = running

    answers = [put(client, GOOD, "0" * 64), put(client, BAD["parent"][0]()), put(client, bytes(65 * 2**20))]

    assert [code for code, _ in answers] == [422, 422, 413]
    assert [kind for _, kind in answers[:2]] == ["wrong_digest", "invalid_package"]
    assert not (tmp_path / "packages").exists()


def test_upload_needs_permission(tmp_path: Path) -> None:
    with api(tmp_path, allow_code=False) as (client, _):
        assert put(client, GOOD) == (403, "code_not_allowed")


def test_job_with_an_unknown_package_is_refused_and_with_a_known_one_launched(
    running: tuple[TestClient, World], tmp_path: Path
) -> None:
    client, world = running
    package = f"sha256:{hashlib.sha256(GOOD).hexdigest()}"
    spec = SPEC | {"code": {"package": package}}

    early = client.post("/v1/jobs", json=spec)
    put(client, GOOD)
    late = client.post("/v1/jobs", json=spec)
    world.reconciler.tick()

    assert early.json()["errors"][0]["pointer"] == "/code/package"
    assert late.status_code == 201
    launch = world.cluster.drivers[f"{late.json()['id']}-1"].launch
    assert launch.package == str(tmp_path / "packages" / f"{package.removeprefix('sha256:')}.zip")


def test_packed_folder_is_the_same_every_time_and_imports_after_unpacking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    (source / "own_net" / "__pycache__").mkdir(parents=True)
    (source / ".git").mkdir()
    for name in ("own_net/__init__.py", "own_net/__pycache__/x.pyc", ".git/config"):
        (source / name).write_text("answer = 42\n")
    made = pack(source)
    zipped = tmp_path / "own.zip"
    zipped.write_bytes(made)
    digest = f"sha256:{hashlib.sha256(made).hexdigest()}"
    monkeypatch.setattr(sys, "path", [*sys.path])

    unpack(str(zipped), digest, tmp_path / "code")
    put_on_path(tmp_path / "code")

    assert pack(source) == made
    assert check(io.BytesIO(made)) == 1
    assert importlib.import_module("own_net").answer == 42


def test_files_that_only_speak_of_syncnorm_are_taken() -> None:
    entries = ("syncnorm/job.yaml", "jobs/syncnorm.py", "syncnorm_jobs.py", "syncnorm.yaml")

    assert check(io.BytesIO(archive(*((name, b"") for name in entries)))) == 4


def test_archive_that_was_exchanged_on_storage_is_not_unpacked(tmp_path: Path) -> None:
    zipped = tmp_path / "own.zip"
    zipped.write_bytes(GOOD)

    with pytest.raises(ValueError, match=r"code.package must be the archive that was uploaded"):
        unpack(str(zipped), "sha256:" + "0" * 64, tmp_path / "code")

    assert not (tmp_path / "code").exists()
