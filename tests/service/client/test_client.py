"""The client against services that are slow, away, restarted, or none at all; and what it never sends."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from syncnorm.service.cli import main as cli
from syncnorm.service.cli import terminal
from syncnorm.service.client.addresses import api_path, checked_token, find_service, normalized
from syncnorm.service.client.client import (
    Client,
    NotSyncnormError,
    ProblemError,
    ServiceTimeoutError,
    ServiceUnreachableError,
    UsageError,
)
from tests.helpers.paths import ROOT

HTML = b"<html><title>Login</title>"
JOB = {"id": "job_1", "state": "queued"}


def answer(body: bytes, status: str = "200 OK", kind: str = "application/json", *headers: str) -> bytes:
    lines = [
        f"HTTP/1.1 {status}",
        f"Content-Type: {kind}",
        f"Content-Length: {len(body)}",
        "Connection: close",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Odd:
    """Gives each connection the next answer, the last one again and again. None: keeps it open and says nothing."""

    def __init__(self, answers: Sequence[bytes | None]) -> None:
        self.requests: list[bytes] = []
        self._answers = answers
        self._kept: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def _accept(self) -> None:
        for number in itertools.count():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.requests.append(client.recv(65536))
            said = self._answers[min(number, len(self._answers) - 1)]
            if said is None:
                self._kept.append(client)
                continue
            client.sendall(said)
            client.close()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        for client in self._kept:
            client.close()


@contextmanager
def odd(*answers: bytes | None, timeout_s: float = 5) -> Iterator[tuple[Client, Odd]]:
    server = Odd(answers)
    try:
        with Client(server.url, timeout_s=timeout_s) as client:
            client.connection.pause_s = 0.01
            yield client, server
    finally:
        server.close()


NOT_OURS = {
    "HTML": answer(HTML, kind="text/html"),
    "half JSON": answer(b'{"id": "job'),
    "garbage": answer(b"\xff\xfe\x00garbage"),
    "null": answer(b"null"),
    "list": answer(b"[]"),
    "other object": answer(b'{"hello": "world"}'),
    "deep": answer(b"[" * 100_000),
    "other 404": answer(b'{"detail": "Not Found"}', "404 Not Found"),
    "HTML 404": answer(HTML, "404 Not Found", "text/html"),
    "HTML 500": answer(HTML, "500 Internal Server Error", "text/html"),
    "redirect": answer(b"", "302 Found", "text/html", "Location: http://login.example/"),
    "other protocol": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "wrong gzip": answer(b"no gzip", "200 OK", "application/json", "Content-Encoding: gzip"),
}


@pytest.mark.parametrize("name", NOT_OURS)
def test_answer_of_another_program_is_told_as_one(name: str) -> None:
    calls: tuple[Callable[[Client], Any], ...] = (
        lambda client: client.job("job_1"),
        lambda client: list(client.jobs()),
        lambda client: client.cancel("job_1"),
        lambda client: client.delete("job_1"),
        lambda client: client.plan({}),
        lambda client: client.submit({}),
        lambda client: client.norms(),
        lambda client: list(client.follow_events("job_1")),
        lambda client: client.study_report("study_1"),
    )
    for call in calls:
        if name == "HTML" and call is calls[-1]:
            continue  # a report is HTML
        with odd(NOT_OURS[name]) as (client, server), pytest.raises(NotSyncnormError, match=re.escape(server.url)):
            call(client)


def test_answers_of_gateways_say_whether_to_wait_or_to_log_in() -> None:
    with odd(answer(HTML, "502 Bad Gateway", "text/html")) as (client, _), pytest.raises(ServiceUnreachableError):
        client.job("job_1")
    with odd(answer(HTML, "504 Gateway Timeout", "text/html")) as (client, _), pytest.raises(ServiceTimeoutError):
        client.job("job_1")
    with odd(answer(HTML, "401 Unauthorized", "text/html")) as (client, _), pytest.raises(ProblemError) as refused:
        client.job("job_1")
    assert terminal.exit_code(refused.value) == terminal.NOT_ALLOWED


@pytest.mark.parametrize("errors", ["[1]", "null", '"x"', '[{"loc": 1}]'])
def test_problem_of_another_shape_is_shown(errors: str) -> None:
    problem = answer(b'{"detail": "No.", "errors": %s}' % errors.encode(), "422 No", "application/problem+json")
    with odd(problem) as (client, _), pytest.raises(ProblemError, match="No"):
        client.job("job_1")


def test_slow_answer_is_a_timeout_and_says_what_to_do() -> None:
    with odd(None, timeout_s=0.2) as (client, server):
        for call in (client.job, client.cancel):
            with pytest.raises(ServiceTimeoutError, match=r"Timed out after 0.2 s.*SYNCNORM_TIMEOUT=0.4"):
                call("job_1")
        with pytest.raises(ServiceTimeoutError, match="check before you repeat it"):
            client.submit({})

    assert len(server.requests) == 3  # none is asked for again by itself


def test_plan_may_take_longer_than_other_requests() -> None:
    with Client("http://127.0.0.1:9") as client:
        asked: list[dict[str, Any]] = []
        client.connection.send = lambda *_, **options: asked.append(options) or _fails()  # type: ignore[method-assign]
        for call in (lambda: client.plan({}), lambda: client.job("a")):
            with pytest.raises(UsageError):
                call()

    assert asked[0]["timeout_s"] >= 120
    assert client.connection.timeout_s == 30


def _fails() -> Any:
    raise UsageError("enough")


LOST = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 999\r\n\r\n{"


def test_lost_answer_is_asked_for_again_only_where_that_is_harmless() -> None:
    good = answer(json.dumps(JOB).encode())
    with odd(LOST, good) as (client, server):
        assert client.job("job_1") == JOB
    with odd(LOST, good) as (client, server):
        assert client.submit({"name": "n"}) == JOB
    keys = {re.search(rb"(?i)idempotency-key: (\S+)", request)[1] for request in server.requests}  # type: ignore[index]
    assert (len(server.requests), len(keys)) == (2, 1)
    with odd(LOST, good) as (client, server), pytest.raises(ServiceUnreachableError, match="carried out is unknown"):
        client.cancel("job_1")
    assert len(server.requests) == 1


def test_busy_service_is_asked_again_after_a_short_time_and_not_after_a_long_one() -> None:
    busy = answer(b'{"status": 429, "detail": "Slow."}', "429 No", "application/problem+json", "Retry-After: 0")
    full = answer(b'{"status": 429, "detail": "Full."}', "429 No", "application/problem+json", "Retry-After: 60")
    with odd(busy, answer(json.dumps(JOB).encode())) as (client, _):
        assert client.cancel("job_1") == JOB
    with odd(full) as (client, server), pytest.raises(ProblemError):
        client.cancel("job_1")
    assert len(server.requests) == 1


def _stream(*events: tuple[int, str], end: bool = False) -> bytes:
    body = "".join(f"id: {number}\nevent: line\ndata: {json.dumps(text)}\n\n" for number, text in events)
    head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    return (head + body + ("event: end\ndata: {}\n\n" if end else "")).encode()


def test_follower_outlives_a_restart_without_a_line_lost_or_doubled() -> None:
    starting = answer(b'{"status": 503, "detail": "Starting."}', "503 No", "application/problem+json")
    gateway = answer(HTML, "502 Bad Gateway", "text/html")
    told: list[str] = []
    with odd(_stream((1, "a"), (2, "b")), b"", starting, gateway, _stream((3, "c"), end=True)) as (client, server):
        client.connection.on_lost = told.append
        seen = list(client.follow_logs("job_1"))

    assert seen == ["a", "b", "c"]
    assert all(b"last-event-id: 2" in request.lower() for request in server.requests[1:])
    assert len(told) == 1
    assert "Trying again for 300 s" in told[0]


def test_follower_of_a_service_that_stays_away_gives_up() -> None:
    with odd(_stream((1, "a")), b"") as (client, _):
        client.connection.patience_s = 0.05
        with pytest.raises(ServiceUnreachableError):
            list(client.follow_logs("job_1"))


def test_follower_of_a_quiet_job_never_gives_up_while_the_service_keeps_the_stream_open() -> None:
    quiet = _stream() + b": keep-alive\n\n"
    with odd(_stream((1, "a")), *[quiet] * 12, _stream((2, "b"), end=True)) as (client, _):
        client.connection.patience_s, client.connection.pause_s = 0.05, 0.01
        seen = list(client.follow_logs("job_1"))

    assert seen == ["a", "b"]


def test_follower_without_a_service_does_not_wait() -> None:
    with Client("http://127.0.0.1:9") as client, pytest.raises(ServiceUnreachableError):
        list(client.follow_logs("job_1"))


def test_follower_finds_a_service_that_came_back_at_another_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYNCNORM_HOME", str(tmp_path))
    monkeypatch.delenv("SYNCNORM_URL", raising=False)
    before, after = Odd([_stream((1, "a"))]), Odd([_stream((2, "b"), end=True)])
    (tmp_path / "service.json").write_text(json.dumps({"url": before.url}))
    try:
        with Client() as client:
            client.connection.pause_s = 0.01
            lines = client.follow_logs("job_1")
            seen = [next(lines)]
            (tmp_path / "service.json").write_text(json.dumps({"url": after.url}))
            seen += list(lines)
    finally:
        before.close()
        after.close()

    assert seen == ["a", "b"]


NO_IDS = ["", " ", "\n", "..", ".", "x/../job_1", "../norms", "job?x=1", "job#x", "#", "%2e%2e", "a\\b", "a b", "a\x00"]
NO_IDS += ["\x1b[2J", "x" * 5000, "\ud800", "a/b", "/", "\u00a0"]


@pytest.mark.parametrize("wanted", NO_IDS, ids=ascii)
def test_what_is_no_id_is_never_sent(wanted: str) -> None:
    with odd(b"") as (client, server):
        for call in (
            *(client.job, client.delete, client.cancel, client.study, client.delete_secret, client.revoke_token),
            *(client.follow_logs, client.checkpoints, lambda name: client.one_export("job_1", name)),
            *(lambda name: client.put_secret(name, "v"), lambda name: client.ask_study("study_1", name)),
        ):
            with pytest.raises(UsageError):
                call(wanted)  # type: ignore[operator]

    assert server.requests == []


@pytest.mark.parametrize("wanted", [one for one in NO_IDS if one not in ("a b", "a/b")], ids=ascii)  # names are
@pytest.mark.parametrize(
    "verb",
    ["show", "rm", "cancel", "logs", "study show", "study cancel", "study report", "secret rm", "token revoke"],
)
def test_verb_about_what_is_no_id_does_nothing(verb: str, wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with odd(b"") as (client, server):
        monkeypatch.setattr(terminal, "Client", lambda: client)
        done = CliRunner().invoke(cli.app, [*verb.split(), "--", wanted])

    assert (done.exit_code, server.requests) == (2, [])
    assert "\x1b" not in done.output
    assert "Traceback" not in done.output


def test_unicode_of_an_id_is_quoted() -> None:
    assert api_path("jobs", "é:@", "cancel") == "/v1/jobs/%C3%A9%3A%40/cancel"


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("localhost:8000/", "http://localhost:8000"),
        (" https://syncnorm.example/v1/ ", "https://syncnorm.example"),
        ("http://host/docs", "http://host"),
        ("host/team/v1", "http://host/team"),
        ("http://[::1]:8000//", "http://[::1]:8000"),
    ],
)
def test_address_is_understood_as_people_write_it(text: str, url: str) -> None:
    assert normalized(text, "SYNCNORM_URL") == url


NO_ADDRESSES = ["http://", "ftp://host", "http://host:99999", "http://host:0", "http://host:80a", "http://host:"]
NO_ADDRESSES += ["http://[::1", "http://user:secret@host", "http://host/?a=b", "http://host/#a", "a b", "//h"]
NO_ADDRESSES += ["http://host\n.evil", "file:///etc"]


@pytest.mark.parametrize("text", NO_ADDRESSES)
def test_address_that_can_be_none_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="SYNCNORM_URL"):
        normalized(text, "SYNCNORM_URL")
    monkeypatch.setenv("SYNCNORM_URL", text)

    done = CliRunner().invoke(cli.app, ["ls"])

    assert done.exit_code == 2
    assert "secret" not in done.output


@pytest.mark.parametrize("token", ["ñ", "a b", "a\x00", "a\nb", "Bearer sn_1", "\u202e"])
def test_token_that_no_header_holds_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(UsageError, match="SYNCNORM_TOKEN must be one word") as refused:
        checked_token(None, {"SYNCNORM_TOKEN": token})

    assert token not in str(refused.value).replace("character", "")


def test_token_may_end_with_the_newline_of_its_file() -> None:
    assert checked_token(None, {"SYNCNORM_TOKEN": "sn_1_2\r\n"}) == "sn_1_2"
    assert checked_token(None, {"SYNCNORM_TOKEN": ""}) is None


@pytest.mark.parametrize("text", ["x", "0", "-1", "nan", "inf", "1e9"])
def test_timeout_that_is_none_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNCNORM_TIMEOUT", text)

    with pytest.raises(UsageError, match="SYNCNORM_TIMEOUT"):
        Client("http://127.0.0.1:9")


def test_address_of_this_host_is_hinted_at_where_another_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "service.json").write_text(json.dumps({"url": "http://127.0.0.1:8123"}))
    monkeypatch.setenv("SYNCNORM_HOME", str(tmp_path))
    monkeypatch.setenv("SYNCNORM_URL", "http://127.0.0.1:9")

    with Client() as client, pytest.raises(ServiceUnreachableError, match="8123"):
        client.norms()


def test_named_state_folder_without_a_service_is_no_other_service(tmp_path: Path) -> None:
    with pytest.raises(ServiceUnreachableError, match=r"No service runs on .* Start one with `syncnorm serve`"):
        find_service(None, {"SYNCNORM_HOME": str(tmp_path)})


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"url": 7}', '{"url": "ftp://x"}'])
def test_broken_address_file_is_as_none(content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".syncnorm").mkdir()
    (tmp_path / ".syncnorm" / "service.json").write_text(content)
    monkeypatch.chdir(tmp_path)

    assert find_service(None, {}).url == "http://127.0.0.1:8000"


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, "\ud800", object()])
def test_what_json_has_no_form_for_is_refused(value: Any) -> None:
    with odd(b"") as (client, server), pytest.raises(UsageError, match="plain JSON values"):
        client.submit({"name": value})

    assert server.requests == []


PROBLEM = {"status": 409, "detail": "Job is running.", "code": "state_conflict"}


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (answer(b'{"status": 404, "detail": "No."}', "404 No", "application/problem+json"), 2),
        (answer(json.dumps(PROBLEM).encode(), "409 No", "application/problem+json"), 2),
        (answer(b'{"status": 401, "detail": "No."}', "401 No", "application/problem+json"), 4),
        (answer(b'{"status": 403, "detail": "No."}', "403 No", "application/problem+json"), 4),
        (answer(b'{"status": 429, "detail": "No."}', "429 No", "application/problem+json"), 4),
        (answer(b'{"status": 500, "detail": "No."}', "500 No", "application/problem+json"), 3),
        (answer(HTML, kind="text/html"), 3),
        (b"", 3),
        (None, 5),
        (
            answer(b'{"id": "job_1", "state": "running"}'),
            70,
        ),  # without what a job is shown by: a defect, not "it failed"
    ],
)
def test_exit_code_tells_the_kind_of_error(said: bytes | None, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with odd(said, timeout_s=0.3) as (client, _):
        monkeypatch.setattr(terminal, "Client", lambda: client)
        done = CliRunner().invoke(cli.app, ["show", "job_01m7yng3kae23np1brvwtk9g1z"])

    assert done.exit_code == code, done.output
    assert done.stdout == ""
    assert "Traceback" not in done.output


def test_errors_under_json_are_problems_on_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    said = answer(json.dumps(PROBLEM).encode(), "409 No", "application/problem+json")
    for words, wanted in (
        (["cancel", "job_01m7yng3kae23np1brvwtk9g1z"], PROBLEM),
        (["show", ""], {"code": "wrong_use"}),
        (["change", "x"], {"code": "wrong_use"}),
    ):
        with odd(said) as (client, _):
            monkeypatch.setattr(terminal, "Client", lambda client=client: client)
            done = CliRunner().invoke(cli.app, [*words, "--json"])

        assert (done.exit_code, done.stdout) == (2, "")
        assert wanted.items() <= json.loads(done.stderr).items()


def sn(*words: str, stdin: int | None = None, **environment: str) -> subprocess.Popen[str]:
    root = str(ROOT)
    return subprocess.Popen(
        [sys.executable, "-m", "syncnorm.service.cli.main", *words],
        env=os.environ | {"PYTHONPATH": root} | environment,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_reader_that_leaves_is_no_error_of_ours() -> None:
    lines = "".join(
        f'{{"id":{n},"at":"2026-01-01T00:00:00Z","rank":0,"level":"I","text":"{"x" * 99}"}},' for n in range(5000)
    )
    with odd(answer(f'{{"items":[{lines[:-1]}],"next_cursor":null}}'.encode())) as (_, server):
        shown = sn("logs", "job_01m7yng3kae23np1brvwtk9g1z", SYNCNORM_URL=server.url)
        assert shown.stdout is not None
        assert shown.stderr is not None
        shown.stdout.readline()
        shown.stdout.close()
        said = shown.stderr.read()
        code = shown.wait(30)
        shown.stderr.close()

    assert (said, code) == ("", 141)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Where tests run in the background of a shell an interrupt is ignored, and children would inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_interrupt_is_130_and_says_nothing() -> None:
    with odd(None) as (_, server):
        asked = sn("show", "job_01m7yng3kae23np1brvwtk9g1z", SYNCNORM_URL=server.url)
        deadline = time.monotonic() + 60
        while not server.requests and time.monotonic() < deadline:
            time.sleep(0.05)
        asked.send_signal(signal.SIGINT)
        out, err = asked.communicate(timeout=30)

    assert (out, asked.returncode) == ("", 130)
    assert "Traceback" not in err


def test_defect_of_the_client_is_70_with_a_sentence_and_a_traceback_on_demand() -> None:
    with odd(answer(b'{"id": "job_1", "state": "running"}')) as (_, server):
        words = ("show", "job_01m7yng3kae23np1brvwtk9g1z")
        short = sn(*words, SYNCNORM_URL=server.url)
        _, said = short.communicate(timeout=60)
        whole = sn(*words, SYNCNORM_URL=server.url, SYNCNORM_TRACEBACK="1")
        _, traced = whole.communicate(timeout=60)

    assert (short.returncode, whole.returncode) == (70, 70)
    assert "KeyError: 'name'" in said
    assert "SYNCNORM_TRACEBACK=1" in said
    assert "Traceback" not in said
    assert "Traceback" in traced


def test_terminal_without_utf8_is_written_to() -> None:
    page = {"items": [{"name": "n", "summary": "é — 😀"}]}
    with odd(answer(json.dumps(page).encode())) as (_, server):
        shown = sn("norms", SYNCNORM_URL=server.url, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
        out, err = shown.communicate(timeout=60)

    assert (shown.returncode, err) == (0, "")
    assert r"\xe9 \u2014 \U0001f600" in out


@pytest.mark.parametrize("words", [["-h"], ["--help"], ["--version"], ["submit", "-h"], ["study", "submit", "-h"]])
def test_help_and_version_are_where_people_look_for_them(words: list[str]) -> None:
    done = CliRunner().invoke(cli.app, words)

    assert done.exit_code == 0
    assert "<class" not in done.output
