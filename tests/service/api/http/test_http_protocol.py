"""Connections that send half of what they began, or read nothing, end; whoever is only slow is served."""

from __future__ import annotations

import hashlib
import io
import json
import socket
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from syncnorm.service.api.http import http_protocol
from syncnorm.service.client.client import Client
from syncnorm.service.jobs.job import JobState, NewEvent
from tests.helpers.service.api import SPEC, api, on_a_socket
from tests.helpers.service.world import World

HEAD_S, IDLE_S = 0.5, 0.8
WAIT_S = 20.0
"""Far more than these take, so that a busy host does no harm."""


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, World]]:
    monkeypatch.setattr(http_protocol, "HEAD_S", HEAD_S)
    monkeypatch.setattr(http_protocol, "IDLE_S", IDLE_S)
    monkeypatch.setattr(http_protocol, "MIN_RATE", 20_000)
    monkeypatch.setattr(http_protocol, "UNREAD_S", 1)
    with api(tmp_path, allow_code=True) as (client, world), on_a_socket(client.app) as port:
        yield port, world


def connect(port: int, *, first: str = "") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=WAIT_S)
    connection.sendall(first.replace("\n", "\r\n").encode())
    return connection


def ended_after(connection: socket.socket, began: float) -> tuple[float, bytes]:
    """Seconds until the other side closed, and what it said before."""
    said = b""
    with connection:
        while True:
            try:
                piece = connection.recv(65536)
            except ConnectionResetError:
                piece = b""
            if not piece:
                return time.monotonic() - began, said
            said += piece


PUT = f"PUT /v1/packages/{'0' * 64} HTTP/1.1\nHost: localhost\nContent-Type: application/zip\n"
POST = "POST /v1/jobs HTTP/1.1\nHost: localhost\nContent-Type: application/json\n"


@pytest.mark.parametrize(
    ("first", "answer"),
    [
        ("", b""),
        ("\n", b"408"),
        ("G", b"408"),
        ("GET /v1/jobs HTTP/1.1\nHost: localhost\nX-A: ", b"408"),
        (f"{POST}Content-Length: 1000\n\n", b"408"),
        (f'{POST}Content-Length: 1000\n\n{{"name"', b"408"),
        (f"{POST}Transfer-Encoding: chunked\n\n3\n", b"408"),
        ("GET /healthz HTTP/1.1\nHost: localhost\n\nGET /v1/jo", b"408"),
        (f"{PUT}Content-Length: 9\n\nPK", b"408"),
    ],
)
def test_half_a_request_is_given_up(served: tuple[int, World], first: str, answer: bytes) -> None:
    port, _ = served
    began = time.monotonic()

    took_s, said = ended_after(connect(port, first=first), began)

    assert min(HEAD_S, IDLE_S) * 0.9 < took_s < WAIT_S / 2
    assert answer in said


def test_five_hundred_silent_connections_end_and_others_are_served_meanwhile(served: tuple[int, World]) -> None:
    port, _ = served
    began = time.monotonic()
    halves = ["GET /v1/jobs HTTP/1.1\nHost: lo", f"{POST}Content-Length: 10\n\n{{", ""]

    silent = [connect(port, first=halves[number % 3]) for number in range(500)]
    status = httpx.get(f"http://127.0.0.1:{port}/v1/jobs", timeout=WAIT_S).status_code
    took_s = [ended_after(connection, began)[0] for connection in silent]

    assert status == 200
    assert max(took_s) < WAIT_S


@pytest.mark.parametrize("first", ["GET /v1/jobs HTTP/1.1\nX-A: ", f"{POST}Content-Length: 100000\n\n"])
def test_a_request_that_trickles_is_given_up(served: tuple[int, World], first: str) -> None:
    """Never silent for long, and never done."""
    port, _ = served
    began = time.monotonic()
    connection = connect(port, first=first)

    def trickle() -> None:
        try:
            while time.monotonic() - began < WAIT_S:
                connection.sendall(b"a")
                time.sleep(0.1)
        except OSError:
            return

    trickling = threading.Thread(target=trickle)
    trickling.start()
    took_s, said = ended_after(connection, began)
    trickling.join()

    assert took_s < WAIT_S / 2
    assert b"408" in said


def test_headers_without_end_are_refused(served: tuple[int, World]) -> None:
    port, _ = served
    connection = connect(port, first="GET /v1/jobs HTTP/1.1\nHost: localhost\n" + "X-A: aaaaaaaaaa\n" * 9000)

    assert b"431" in ended_after(connection, time.monotonic())[1]


def test_slow_upload_of_a_package_is_taken(served: tuple[int, World]) -> None:
    """It takes several times as long as a silent one is waited for."""
    port, _ = served
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("net.py", bytes(500_000))
    content = file.getvalue()
    size = len(content) // 20

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(content), size):
            time.sleep(IDLE_S / 5)
            yield content[start : start + size]

    began = time.monotonic()
    answer = httpx.put(
        f"http://127.0.0.1:{port}/v1/packages/{hashlib.sha256(content).hexdigest()}",
        content=pieces(),
        headers={"Content-Type": "application/zip"},
        timeout=WAIT_S,
    )

    assert answer.status_code == 201, answer.text
    assert time.monotonic() - began > 3 * IDLE_S


def test_follower_stays_for_as_long_as_nothing_happens(served: tuple[int, World]) -> None:
    port, world = served
    with Client(f"http://127.0.0.1:{port}") as client:
        job = client.submit(SPEC)["id"]
        events = client.follow_events(job)
        assert next(events)["message"] == "Submitted."
        time.sleep(HEAD_S + IDLE_S + 0.5)
        world.store.history.add_event(job, NewEvent("note", "after a long rest"))
        world.store.jobs.move(world.job(job), JobState.CANCELLED, event=NewEvent("cancelled", "Over."))

        assert [event["message"] for event in events] == ["after a long rest", "Over."]


def test_follower_that_never_reads_is_let_go(served: tuple[int, World]) -> None:
    port, world = served
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as http:
        job = http.post("/v1/jobs", json=SPEC).json()["id"]
    deaf = socket.socket()
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    deaf.connect(("127.0.0.1", port))
    request = f"GET /v1/jobs/{job}/events HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n"
    deaf.sendall(request.encode())
    for _ in range(400):
        world.store.history.add_event(job, NewEvent("note", "x" * 20_000))
    own = deaf.getsockname()[1]

    with deaf:
        deadline = time.monotonic() + 3 * WAIT_S
        while is_open(port, own):
            assert time.monotonic() < deadline
            time.sleep(0.2)


def is_open(port: int, peer: int) -> bool:
    """Whether the server's side of a connection stands (Linux)."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ends = {(int(line[1].split(":")[1], 16), int(line[2].split(":")[1], 16)) for line in lines if line[3] == "01"}
    return (port, peer) in ends


OFFER = "Connection: Upgrade, HTTP2-Settings\nUPGRADE: {what}\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\n"


def status(file: io.BufferedReader) -> int:
    """That of the next answer."""
    found = int(file.readline().split()[1])
    length = 0
    while (line := file.readline().strip().lower()) != b"":
        if line.startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    file.read(length)
    return found


@pytest.mark.parametrize("what", ["h2c", "websocket"])
@pytest.mark.parametrize("pieces", [1, 3, 0], ids=["at once", "in pieces", "byte by byte"])
def test_an_offer_of_another_protocol_is_passed_over(served: tuple[int, World], what: str, pieces: int) -> None:
    # Java's HttpClient makes one with every request; the body must arrive, and the connection go on.
    body = json.dumps(SPEC)
    head = f"{POST}{OFFER.format(what=what)}Content-Length: {len(body)}\n\n".replace("\n", "\r\n")
    request = (head + body).encode()
    size = len(request) // pieces + 1 if pieces else 1

    with connect(served[0]) as connection, connection.makefile("rb") as answers:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(2):
            for start in range(0, len(request), size):
                connection.sendall(request[start : start + size])

            assert status(answers) == 201


def test_what_is_no_http_is_refused_at_once(served: tuple[int, World], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_S", WAIT_S)
    began = time.monotonic()
    connection = connect(served[0])
    connection.sendall(bytes.fromhex("1603010200010001fc0303"))  # TLS, as https:// of the same address would begin

    elapsed_s, said = ended_after(connection, began)

    assert said.startswith(b"HTTP/1.1 400")
    assert elapsed_s < WAIT_S / 2
