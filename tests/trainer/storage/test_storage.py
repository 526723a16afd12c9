"""A storage is a folder or a bucket: both give the same answers, and neither takes silence for "not there"."""

from __future__ import annotations

import errno
import random
import stat
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import botocore.exceptions
import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syncnorm.trainer.errors import StorageError
from syncnorm.trainer.storage.atomic_files import sha256_of
from syncnorm.trainer.storage.faults import Fault, fault_of
from syncnorm.trainer.storage.object_store import Bucket, Times
from syncnorm.trainer.storage.storage import Storage, local_copy, storage_at
from tests.helpers.bucket_server import BucketServer

EVERYWHERE = pytest.mark.parametrize("server", ["s3", "gs", "az"], indirect=True)
NAMES = ("a", "ab", "b.json", "dir/x", "dir/y", "dir/sub/z", "dirx")
FOLDERS = ("", "dir", "dir/sub", "d", "none")
OPERATIONS = st.one_of(
    st.tuples(st.sampled_from(["write", "put"]), st.sampled_from(NAMES), st.binary(max_size=9)),
    st.tuples(st.sampled_from(["read", "get", "has", "remove"]), st.sampled_from(NAMES), st.none()),
    st.tuples(st.sampled_from(["names", "remove"]), st.sampled_from(FOLDERS[1:]), st.none()),
)


def answer(storage: Storage, operation: tuple[str, str, bytes | None], scratch: Path) -> Any:
    """What a storage says, with a missing file as a value."""
    verb, name, content = operation
    here = scratch / uuid.uuid4().hex
    try:
        if verb == "write":
            return storage.write(name, content or b"")
        if verb == "put":
            here.write_bytes(content or b"")
            return storage.put(here, name)
        if verb == "get":
            storage.get(name, here)
            return here.read_bytes()
        return getattr(storage, verb)(name)
    except FileNotFoundError:
        return "not there"


@EVERYWHERE
@settings(max_examples=20)
@given(operations=st.lists(OPERATIONS, max_size=12))
def test_folder_and_bucket_give_the_same_answers(
    bucket: str, tmp_path: Path, operations: list[tuple[str, str, bytes | None]]
) -> None:
    run = uuid.uuid4().hex
    folder, elsewhere = storage_at(str(tmp_path / run)), storage_at(f"{bucket}/{run}")

    answers = [(answer(folder, each, tmp_path), answer(elsewhere, each, tmp_path)) for each in operations]

    assert [one for one, _ in answers] == [other for _, other in answers]
    assert [folder.names(below) for below in FOLDERS] == [elsewhere.names(below) for below in FOLDERS]
    assert [path.name for path in tmp_path.rglob(".tmp-*")] == []


@EVERYWHERE
# From 100 MiB on s3fs sends parts (2026.9).
@pytest.mark.parametrize("mebibytes", [12, pytest.param(130, marks=pytest.mark.chaos)])
def test_large_file_arrives_whole(bucket: str, tmp_path: Path, mebibytes: int) -> None:
    storage, source, back = storage_at(bucket), tmp_path / "large", tmp_path / "deep" / "back"
    source.write_bytes(random.Random(0).randbytes(mebibytes * 2**20))

    for each in (storage, storage_at(str(tmp_path / "folder"))):
        each.put(source, "jobs/1/state.pt")
        each.get("jobs/1/state.pt", back)

        assert sha256_of(back) == sha256_of(source)
        back.unlink()


def test_launch_file_in_a_folder_is_its_owners_alone(tmp_path: Path) -> None:
    storage_at(str(tmp_path)).write("launch.json", b"token", private=True)

    assert stat.S_IMODE((tmp_path / "launch.json").stat().st_mode) == 0o600


@EVERYWHERE
def test_local_copy_of_a_url_goes_with_the_block(bucket: str) -> None:
    storage_at(bucket).write("packages/1.zip", b"code")

    with local_copy(f"{bucket}/packages/1.zip") as path:
        content = path.read_bytes()

    assert (content, path.exists()) == (b"code", False)


ACCESS: dict[str, Callable[[Storage], object]] = {
    "read": lambda storage: storage.read("x"),
    "has": lambda storage: storage.has("x"),
    "names": lambda storage: storage.names(),
    "write": lambda storage: storage.write("x", b""),
    "remove": lambda storage: storage.remove("x"),
}


@EVERYWHERE
@pytest.mark.parametrize("verb", ACCESS)
def test_bucket_that_does_not_answer_is_not_an_empty_one(bucket: str, server: BucketServer, verb: str) -> None:
    storage = storage_at(bucket)
    server.line.cut()
    try:
        with pytest.raises(StorageError, match=r"did not answer.*Check the network"):
            ACCESS[verb](storage)
    finally:
        server.line.mend()


@EVERYWHERE
@pytest.mark.parametrize("verb", ["read", "write"])
def test_server_that_takes_calls_and_never_answers_is_given_up(
    bucket: str, server: BucketServer, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    # A PUT asks before it sends its body, and aiohttp waits for that answer without any limit (3.14).
    monkeypatch.setattr("syncnorm.trainer.storage.object_store._IMPATIENT", Times(connect_s=1, read_s=2, call_s=2))
    storage = Bucket(bucket)
    storage.has("x")  # its first call also makes a client
    server.freeze()
    try:
        with pytest.raises(StorageError, match=r"did not answer.* to"):
            ACCESS[verb](storage)
    finally:
        server.thaw()


@EVERYWHERE
@pytest.mark.parametrize("verb", ACCESS)
def test_bucket_that_does_not_exist_is_not_an_empty_one(bucket: str, verb: str) -> None:
    with pytest.raises(StorageError, match=r"refused to .*(bucket|container) does not exist.*Check the credentials"):
        ACCESS[verb](storage_at(f"{bucket}-other/jobs"))


def test_folder_that_can_not_be_read_is_not_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")

    for access in (lambda one: one.read("x"), lambda one: one.has("x"), lambda one: one.names()):
        with pytest.raises(StorageError, match="symbolic links"):
            access(storage_at(str(tmp_path / "loop")))


@pytest.mark.parametrize("server", ["s3", "az"], indirect=True)  # that of gs:// knows no rights
def test_host_that_may_only_read_is_refused_at_once_without_its_key(bucket: str, server: BucketServer) -> None:
    with server.used():
        storage_at(bucket).write("result.json", b"{}")

    with server.used(server.reading):
        storage = storage_at(bucket, patience_s=600.0)
        read = storage.read("result.json")
        with pytest.raises(
            StorageError, match=r"refused to write x \((PermissionError: Access Denied|.*not author)"
        ) as refused:
            storage.write("x", b"")

    assert read == b"{}"
    assert not any(secret in str(refused.value) for secret in server.reading.values() if "http" not in secret)


@EVERYWHERE
def test_bucket_that_was_away_for_a_while_is_waited_for(bucket: str, server: BucketServer) -> None:
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            server.line.mend()

    storage = Bucket(bucket, patience_s=60.0, sleep=sleep)
    server.line.cut()
    storage.write("x", b"kept")

    assert storage.read("x") == b"kept"
    assert slept == [0.5, 1.0, 2.0]


def test_bucket_that_stays_away_is_given_up_once(bucket: str, server: BucketServer) -> None:
    time_s = 0.0

    def sleep(seconds: float) -> None:
        nonlocal time_s
        time_s += seconds

    storage = Bucket(bucket, patience_s=60.0, clock=lambda: time_s, sleep=sleep)
    server.line.cut()
    try:
        with pytest.raises(StorageError, match=r"did not answer for \d\d s to write x"):
            storage.write("x", b"")
        given_up_at = time_s
        with pytest.raises(StorageError, match="did not answer to read x"):
            storage.read("x")
    finally:
        server.line.mend()

    assert 50 < given_up_at <= 60
    assert time_s == given_up_at
    assert not storage.has("x")


@EVERYWHERE
def test_copy_that_arrives_damaged_is_sent_again(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "state.pt").write_bytes(b"whole")
    storage = Bucket(bucket, patience_s=60.0, sleep=lambda _: None)
    filesystem, original, sent = storage._fs, storage._fs._put_file, []

    async def put_file(source: str, target: str) -> None:
        sent.append(target)
        await original(source, target)
        if len(sent) == 1:
            await filesystem._pipe_file(target, b"wh")

    monkeypatch.setattr(filesystem, "_put_file", put_file)
    storage.put(tmp_path / "state.pt", "state.pt")

    assert len(sent) == 2
    assert storage.read("state.pt") == b"whole"


def test_scheme_without_its_package_says_what_to_install() -> None:
    with pytest.raises(StorageError, match=r"pip install 'syncnorm\[s3,gcs,azure\]'"):
        storage_at("nothing://bucket")


class HttpError(Exception):
    """As gcsfs raises it."""

    def __init__(self, code: int) -> None:
        super().__init__("no")
        self.code = code


class HttpResponseError(Exception):
    """As Azure's library raises it."""

    def __init__(self, status_code: int) -> None:
        super().__init__("no")
        self.status_code = status_code


def raised_from(cause: Exception) -> RuntimeError:
    error = RuntimeError("Failed to remove %s for %s", "x", cause)
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (FileNotFoundError("The specified key does not exist."), Fault.MISSING),
        (FileNotFoundError("The specified bucket does not exist"), Fault.REFUSED),
        (PermissionError("Access Denied"), Fault.REFUSED),
        (botocore.exceptions.NoCredentialsError(), Fault.REFUSED),
        (OSError(errno.EINVAL, "The region 'x' is wrong; expecting 'y'"), Fault.REFUSED),
        (OSError("Forbidden: bucket/x\nanother project's"), Fault.REFUSED),
        (HttpError(403), Fault.REFUSED),
        (HttpError(429), Fault.AWAY),
        (HttpError(503), Fault.AWAY),
        (HttpResponseError(400), Fault.REFUSED),
        (HttpResponseError(408), Fault.AWAY),
        (HttpResponseError(500), Fault.AWAY),
        (raised_from(HttpResponseError(403)), Fault.REFUSED),
        (raised_from(ConnectionResetError()), Fault.AWAY),
        (ValueError("Bad Request: bucket/x\ninvalid argument"), Fault.REFUSED),
        (OSError(errno.EBUSY, "Please reduce your request rate."), Fault.AWAY),
        (OSError(errno.EREMOTEIO, "We encountered an internal error"), Fault.AWAY),
        (botocore.exceptions.EndpointConnectionError(endpoint_url="http://x"), Fault.AWAY),
        (botocore.exceptions.ReadTimeoutError(endpoint_url="http://x"), Fault.AWAY),
        (TimeoutError(), Fault.AWAY),
        (ConnectionResetError(), Fault.AWAY),
    ],
)
def test_each_error_says_missing_refused_or_away(error: Exception, fault: Fault) -> None:
    assert fault_of(error) is fault


@EVERYWHERE
def test_buckets_listing_is_never_a_remembered_one(bucket: str) -> None:
    storage = storage_at(bucket)
    before = storage.names()

    done = threading.Thread(target=lambda: fsspec.open(f"{bucket}/late", "wb").open().close())
    done.start()
    done.join()

    assert (before, storage.names()) == ([], ["late"])
