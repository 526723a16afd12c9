"""Followers that are cut off miss nothing and see nothing twice."""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from syncnorm.service.api import sse
from syncnorm.service.api.components import Components
from syncnorm.service.client.client import Client
from syncnorm.service.jobs.job import JobState, NewEvent
from syncnorm.service.store.tables.history import HistoryTable
from syncnorm.service.store.values import StoredEvent
from syncnorm.trainer.contract.protocol import LogLine
from tests.helpers.service.api import SPEC, api, on_a_socket
from tests.helpers.service.world import World


class Cutter:
    """A TCP proxy that cuts each connection after a random number of bytes, a given number of times."""

    def __init__(self, target: int, cuts: int, seed: int) -> None:
        self.cuts = cuts
        self._target = target
        self._random = random.Random(seed)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def _accept(self) -> None:
        workers = []
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                break
            worker = threading.Thread(target=self._pass_on, args=(client,))
            worker.start()
            workers.append(worker)
        for worker in workers:
            worker.join()

    def _pass_on(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._target)) as server:
            left = self._random.randint(1, 4000) if self.cuts > 0 else None
            self.cuts -= 1
            request = b""
            while b"\r\n\r\n" not in request:
                if not (piece := client.recv(65536)):
                    return
                request += piece
            server.sendall(request)
            while left is None or left > 0:
                piece = server.recv(65536 if left is None else left)
                if not piece:
                    return
                try:
                    client.sendall(piece)
                except OSError:
                    return
                left = None if left is None else left - len(piece)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[int, World]]:
    """The application on a real socket."""
    with api(tmp_path) as (client, world), on_a_socket(client.app) as port:
        yield port, world


def test_follower_cut_off_a_hundred_times_misses_nothing_and_sees_nothing_twice(served: tuple[int, World]) -> None:
    port, world = served
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as direct:
        job_id = direct.post("/v1/jobs", json=SPEC).json()["id"]
    cutter = Cutter(port, cuts=100, seed=1)
    seen: list[str] = []

    def follow() -> None:
        with Client(f"http://127.0.0.1:{cutter.port}") as client:
            client.connection.pause_s = 0.001
            seen.extend(event["message"] for event in client.follow_events(job_id))

    follower = threading.Thread(target=follow)
    follower.start()
    expected = ["Submitted."]
    for number in range(1500):
        message = f"{number} {'x' * (number % 97)}"
        world.store.history.add_event(job_id, NewEvent("note", message))
        expected.append(message)
    job = world.job(job_id)
    assert world.store.jobs.move(job, JobState.CANCELLED, event=NewEvent("cancelled", "Over."))
    follower.join(120)
    cutter.close()

    assert cutter.cuts <= 0
    assert seen == [*expected, "Over."]


def test_stopping_the_server_ends_a_stream_without_an_error_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with api(tmp_path) as (here, _), httpx.Client() as client:
        job_id = here.post("/v1/jobs", json=SPEC).json()["id"]
        context: Components = here.app.state.context  # type: ignore[attr-defined]
        with on_a_socket(here.app, context.end_followers) as port:
            url = f"http://127.0.0.1:{port}/v1/jobs/{job_id}/events"
            request = client.build_request("GET", url, headers={"Accept": "text/event-stream"})
            lines = client.send(request, stream=True).iter_lines()
            while "Submitted." not in next(lines):
                pass
        rest = list(lines)

    assert not [line for line in rest if line.startswith("data")]
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_stream_goes_on_behind_the_last_event_id(served: tuple[int, World]) -> None:
    port, world = served
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        job_id = client.post("/v1/jobs", json=SPEC).json()["id"]
        for number in range(5):
            world.store.history.add_event(job_id, NewEvent("note", str(number)))
        world.store.jobs.move(world.job(job_id), JobState.CANCELLED, event=NewEvent("cancelled", "Over."))
        third = world.store.history.events(job_id)[2].seq
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(third)}

        answer = client.get(f"/v1/jobs/{job_id}/events", headers=headers)

    assert answer.headers["content-type"].startswith("text/event-stream")
    data = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    assert [json.loads(one).get("message") for one in data] == ["2", "3", "4", "Over.", None]


def test_follower_hears_of_a_change_at_once(served: tuple[int, World]) -> None:
    port, _ = served
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        job_id = client.post("/v1/jobs", json=SPEC).json()["id"]
        with client.stream("GET", f"/v1/jobs/{job_id}/events", headers={"Accept": "text/event-stream"}) as answer:
            lines = answer.iter_lines()
            while not next(lines).startswith("id:"):
                pass
            began = time.perf_counter()
            client_two = httpx.post(f"http://127.0.0.1:{port}/v1/jobs/{job_id}/cancel")
            while not next(lines).startswith("data:"):
                pass
            took_s = time.perf_counter() - began

    assert client_two.status_code == 202
    assert took_s < 0.9  # the look at news alone would take up to 1 s


def test_job_that_never_rests_is_read_a_few_times_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often its ranks report: each report wakes every follower."""
    reads: list[int] = []
    whole = HistoryTable.events

    def counted(table: HistoryTable, job_id: str, after: int = 0, limit: int = 200) -> list[StoredEvent]:
        reads.append(after)
        return whole(table, job_id, after, limit)

    monkeypatch.setattr(HistoryTable, "events", counted)
    with api(tmp_path) as (here, world), on_a_socket(here.app) as port:
        job_id = here.post("/v1/jobs", json=SPEC).json()["id"]
        with httpx.stream("GET", f"http://127.0.0.1:{port}/v1/jobs/{job_id}/events?follow=true") as answer:
            lines = answer.iter_lines()
            began = time.monotonic()
            while time.monotonic() - began < 1:
                here.app.state.context.notifier.changed(job_id)  # type: ignore[attr-defined]
                time.sleep(0.002)
            world.store.history.add_event(job_id, NewEvent("note", "the last one"))
            while "the last one" not in next(lines):
                pass
            took_s = time.monotonic() - began

    assert len(reads) <= 2 + took_s / 0.25


def test_stream_without_a_new_item_sends_comments_although_the_job_changes_all_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that prints lines, for a follower of its events: without comments the client would take it for lost."""
    monkeypatch.setattr(sse, "_QUIET_S", 0.3)
    is_over = threading.Event()
    with api(tmp_path) as (here, _), on_a_socket(here.app) as port:
        job_id = here.post("/v1/jobs", json=SPEC).json()["id"]

        def print_lines() -> None:
            while not is_over.wait(0.02):
                here.app.state.context.notifier.changed(job_id)  # type: ignore[attr-defined]

        printing = threading.Thread(target=print_lines)
        printing.start()
        try:
            headers = {"Accept": "text/event-stream"}
            url = f"http://127.0.0.1:{port}/v1/jobs/{job_id}/events"
            with httpx.stream("GET", url, headers=headers, timeout=30) as answer:
                comments = (line for line in answer.iter_lines() if line.startswith(":"))
                found = [next(comments), next(comments)]
        finally:
            is_over.set()
            printing.join()

    assert len(found) == 2


def job_with_lines(port: int, world: World) -> str:
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        job_id = str(client.post("/v1/jobs", json=SPEC | {"labels": {"works": "99"}}).json()["id"])
    world.step()
    (attempt,) = world.store.attempts.unreleased()
    lines = [
        LogLine(rank=0, seq=seq, at="2026-01-01T00:00:00Z", level="INFO", text=f"line {seq} \x1b[31m")
        for seq in (1, 2, 3)
    ]
    world.store.reports.add_lines(attempt.id, attempt.fence, lines)
    return job_id


@pytest.mark.parametrize(
    ("accept", "media_type", "first"),
    [
        ("text/plain", "text/plain; charset=utf-8", "2026-01-01T00:00:00Z rank 0 INFO line 1 \x1b[31m"),
        ("application/x-ndjson", "application/x-ndjson", '"text":"line 1 '),
        ("text/event-stream", "text/event-stream; charset=utf-8", '"text":"line 1 '),
        ("*/*", "text/event-stream; charset=utf-8", '"text":"line 1 '),
        ("text/plain;q=0.5, application/x-ndjson", "application/x-ndjson", '"text":"line 1 '),
    ],
)
def test_logs_are_followed_in_the_form_that_accept_names(
    served: tuple[int, World], accept: str, media_type: str, first: str
) -> None:
    port, world = served
    job_id = job_with_lines(port, world)
    url = f"http://127.0.0.1:{port}/v1/jobs/{job_id}/logs?follow=true"

    with httpx.stream("GET", url, headers={"Accept": accept}, timeout=20) as answer:
        pieces = answer.iter_text()
        text = next(pieces)
        (attempt,) = world.store.attempts.unreleased()
        late = LogLine(rank=-1, seq=9, at="2026-01-01T00:00:01Z", level="INFO", text="late")
        world.store.reports.add_lines(attempt.id, attempt.fence, [late])
        httpx.post(f"http://127.0.0.1:{port}/v1/jobs/{job_id}/cancel")
        for _ in range(4):
            world.step()
        text += "".join(pieces)

    assert answer.headers["content-type"] == media_type
    assert first in text
    assert text.count("line 3") == 1
    assert "late" in text
    if "ndjson" in media_type:
        assert [json.loads(line)["seq"] for line in text.splitlines()] == [1, 2, 3, 9]
    if media_type.startswith("text/plain"):
        assert text.splitlines()[-1] == "2026-01-01T00:00:01Z driver INFO late"


def test_stream_in_ndjson_goes_on_behind_the_last_id(served: tuple[int, World]) -> None:
    port, world = served
    job_id = job_with_lines(port, world)
    httpx.post(f"http://127.0.0.1:{port}/v1/jobs/{job_id}/cancel")
    for _ in range(4):
        world.step()
    url = f"http://127.0.0.1:{port}/v1/jobs/{job_id}/logs?follow=true"
    headers = {"Accept": "application/x-ndjson"}
    first = json.loads(httpx.get(url, headers=headers).text.splitlines()[0])

    rest = httpx.get(url, headers=headers | {"Last-Event-ID": str(first["id"])})

    assert [json.loads(line)["seq"] for line in rest.text.splitlines()] == [2, 3]


@pytest.mark.parametrize("path", ["events", "events?follow=true", "logs?follow=true"])
def test_head_of_a_stream_does_not_wait_for_its_end(served: tuple[int, World], path: str) -> None:
    port, world = served
    job_id = job_with_lines(port, world)
    headers = {"Accept": "text/event-stream"}

    for _ in range(3):
        head = httpx.head(f"http://127.0.0.1:{port}/v1/jobs/{job_id}/{path}", headers=headers, timeout=5)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"].startswith("text/event-stream")
