"""Downloads over connections that break, of files that change or are damaged; and waiting for a job."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from syncnorm.service.client.client import (
    Client,
    DamagedFileError,
    ProblemError,
    ServiceTimeoutError,
    ServiceUnreachableError,
    UsageError,
)
from tests.service.client.test_client import Odd, answer, odd

CONTENT = random.Random(0).randbytes(300_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
PATH = "export/weights.safetensors"


def listing(content: bytes = CONTENT, digest: str | None = None) -> bytes:
    found = digest or hashlib.sha256(content).hexdigest()
    file = {"path": PATH, "kind": "weights", "size_bytes": len(content), "digest": found}
    return answer(json.dumps({"items": [file], "next_cursor": None}).encode())


def sent(content: bytes = CONTENT, start: int = 0, most: int | None = None, tag: str | None = None) -> bytes:
    """A file from `start` on, cut off after `most` bytes of it."""
    body = content[start:]
    lines = [
        "HTTP/1.1 206 Partial Content" if start else "HTTP/1.1 200 OK",
        f"Content-Length: {len(body)}",
        f'ETag: "{tag or hashlib.sha256(content).hexdigest()}"',
        "Content-Type: application/octet-stream",
        "Connection: close",
        *([f"Content-Range: bytes {start}-{len(content) - 1}/{len(content)}"] if start else []),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body[:most]


def asked(server: Odd) -> list[str]:
    """The Range of each request, or its path."""
    found = []
    for request in server.requests:
        text = request.decode()
        parts = re.search(r"(?i)^range: (.*)\r$", text, re.MULTILINE)
        found.append(parts[1] if parts else text.split()[1].partition("?")[0].rpartition("/")[2])
    return found


def left_over(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.endswith(".part")]


def test_file_comes_whole_and_is_not_asked_for_twice(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    with odd(listing(), sent(), listing()) as (client, server):
        first = client.download("job_1", PATH, tmp_path, on_progress=lambda *of: told.append(of))
        second = client.download({"id": "job_1"}, PATH, tmp_path / "weights.safetensors")

    assert first == second == tmp_path / "weights.safetensors"
    assert first.read_bytes() == CONTENT
    assert asked(server) == ["files", "weights.safetensors", "files"]
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert all(one[0] <= other[0] for one, other in pairwise(told))
    assert left_over(tmp_path) == []


def test_broken_download_is_continued_where_it_broke(tmp_path: Path) -> None:
    with odd(listing(), sent(most=100_000), sent(start=100_000, most=50_000), sent(start=150_000)) as (client, server):
        path = client.download("job_1", PATH, tmp_path / "w")

    assert path.read_bytes() == CONTENT
    assert asked(server)[2:] == ["bytes=100000-", "bytes=150000-"]
    assert f'If-Range: "{DIGEST}"'.lower().encode() in server.requests[2].lower()


def test_next_call_continues_what_another_has_left(tmp_path: Path) -> None:
    with odd(listing(), sent(most=100_000), sent(start=100_000, most=0)) as (client, _):
        client.connection.patience_s = 0.0
        with pytest.raises(ServiceUnreachableError, match="was lost"):
            client.download("job_1", PATH, tmp_path / "w")
    before = left_over(tmp_path)

    with odd(listing(), sent(start=100_000)) as (client, server):
        client.download("job_1", PATH, tmp_path / "w")

    assert (len(before), (tmp_path / "w").read_bytes()) == (1, CONTENT)
    assert asked(server) == ["files", "bytes=100000-"]


def test_server_that_gives_all_of_it_again_is_taken_at_its_word(tmp_path: Path) -> None:
    with odd(listing(), sent(most=100_000), sent()) as (client, _):
        path = client.download("job_1", PATH, tmp_path / "w")

    assert path.read_bytes() == CONTENT


def test_file_that_changes_meanwhile_is_taken_as_it_is_then(tmp_path: Path) -> None:
    other = CONTENT[::-1]
    with odd(listing(), sent(most=100_000), sent(other), listing(other), sent(other)) as (client, _):
        path = client.download("job_1", PATH, tmp_path / "w")

    assert path.read_bytes() == other
    assert left_over(tmp_path) == []


def test_damaged_file_takes_no_place_and_is_said(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(b"the one before")
    damaged = sent(CONTENT[:-1] + b"?", tag=DIGEST)
    with odd(*[listing(), damaged] * 3) as (client, server), pytest.raises(DamagedFileError, match=DIGEST):
        client.download("job_1", PATH, tmp_path / "w")

    assert (tmp_path / "w").read_bytes() == b"the one before"
    assert left_over(tmp_path) == []
    assert len(server.requests) == 6


def test_file_damaged_on_the_way_once_is_received_again(tmp_path: Path) -> None:
    with odd(listing(), sent(CONTENT[:-1] + b"?", tag=DIGEST), listing(), sent()) as (client, _):
        path = client.download("job_1", PATH, tmp_path / "w")

    assert path.read_bytes() == CONTENT


def test_missing_file_is_refused_as_the_service_would(tmp_path: Path) -> None:
    with odd(listing()) as (client, _), pytest.raises(ProblemError, match="There is no file export/other") as refused:
        client.download("job_1", "export/other", tmp_path)

    assert refused.value.status == 404


@pytest.mark.parametrize("path", ["", "/etc/passwd", "a/../../tokens", "a//b", "./a", "a\\b", "a\nb", None])
def test_path_that_could_lead_elsewhere_is_never_sent(path: Any, tmp_path: Path) -> None:
    with odd(listing()) as (client, server), pytest.raises(UsageError, match="syncnorm files"):
        client.download("job_1", path, tmp_path)

    assert server.requests == []


def test_empty_file(tmp_path: Path) -> None:
    with odd(listing(b""), sent(b"")) as (client, _):
        path = client.download("job_1", PATH, f"{tmp_path}/new/")

    assert path == tmp_path / "new" / "weights.safetensors"
    assert path.read_bytes() == b""


def job(state: str) -> bytes:
    return answer(json.dumps({"id": "job_1", "state": state}).encode())


@pytest.fixture
def no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("syncnorm.service.client.client.POLL_S", 0.01)


WAITS: list[Callable[[Client], Any]] = [
    lambda client: client.wait("job_1"),
    lambda client: client.wait({"id": "job_1"}),
]


@pytest.mark.usefixtures("no_rest")
@pytest.mark.parametrize("wait", WAITS)
def test_wait_ends_with_the_job_and_outlives_an_outage(wait: Callable[[Client], Any]) -> None:
    away = answer(b"", "503 Service Unavailable", "text/html")
    with odd(job("queued"), away, away, away, job("running"), job("failed")) as (client, _):
        found = wait(client)

    assert found["state"] == "failed"


@pytest.mark.usefixtures("no_rest")
def test_wait_gives_up_when_its_time_is_over() -> None:
    late = pytest.raises(ServiceTimeoutError, match=r"job_1 is still running after 0.05 s")
    with odd(job("running")) as (client, _), late:
        client.wait("job_1", timeout_s=0.05)
