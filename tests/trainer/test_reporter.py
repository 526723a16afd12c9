"""What an attempt tells the service arrives in order, once, and later if it can't arrive now."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from trainer.attempt import Launch, Result
from trainer.prints import captured
from trainer.reporter import Reporter
from trainer.spec_reader import read_spec

SPEC = read_spec({"name": "a", "model": {"name": "mlp"}, "data": {"name": "digits", "batch_size": 4}})


@dataclass
class Service:
    """The other end: keeps what it is sent and answers as told."""

    port: int = 0
    status: int = 200
    stop: str | None = None
    received: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def bodies(self, path: str) -> list[dict[str, Any]]:
        return [body for where, body in self.received if where == path]

    def wait(self, path: str, count: int = 1) -> list[dict[str, Any]]:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.bodies(path)) >= count, timeout=20), self.received
        return self.bodies(path)


@contextmanager
def serving(service: Service) -> Iterator[Service]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answer = json.dumps({"stop": service.stop, "lease_s": 60}).encode()
            self.send_response(service.status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)
            if service.status == 200:
                with service.changed:
                    service.received.append((self.path.rsplit("/", 1)[-1], body))
                    service.changed.notify_all()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", service.port), Handler)
    service.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def reporter_for(service: Service, rank: int = 0) -> Reporter:
    launch = Launch(
        job_id="job_1",
        attempt=1,
        fence="f",
        spec=SPEC,
        service_url=f"http://127.0.0.1:{service.port}",
        token="t",
        mlflow_uri="",
        mlflow_run_id="",
        resume_from=None,
    )
    return Reporter(launch, rank).start()


def test_everything_arrives_and_close_waits_for_it() -> None:
    with serving(Service()) as service:
        reporter = reporter_for(service, rank=1)
        reporter.enter("training")
        reporter.log("INFO", "one\ntwo")
        reporter.progress(epoch=1, epochs=2, step=10, steps=20, metrics={"train/loss": 0.5})
        reporter.exit(Result(fence="f", outcome="succeeded"))
        reporter.close()

    lines = [line for body in service.bodies("logs") for line in body["lines"]]
    assert [(line["rank"], line["seq"], line["text"]) for line in lines] == [(1, 1, "one"), (1, 2, "two")]
    assert service.bodies("heartbeat")[0]["source"] == "rank-1"
    assert service.bodies("progress")[-1]["step"] == 10
    assert service.bodies("exit")[0]["result"]["outcome"] == "succeeded"


class Printing(logging.Handler):
    """As Ray's: prints to whatever standard error is now."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


def test_records_of_its_own_requests_are_not_sent_as_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = logging.getLogger("httpx")
    monkeypatch.setattr(requests, "level", logging.INFO)
    monkeypatch.setattr(requests, "handlers", [Printing()])
    with serving(Service()) as service:
        reporter = reporter_for(service)
        with captured(reporter):
            print("one")
            service.wait("logs")
            reporter.progress(epoch=1, epochs=2, step=10, steps=20, metrics={})
            service.wait("progress")
        reporter.close()

    assert [line["text"] for body in service.bodies("logs") for line in body["lines"]] == ["one"]


def test_what_happens_while_the_service_is_away_arrives_in_order_when_it_is_back() -> None:
    with serving(Service()) as service:
        reporter = reporter_for(service)
        service.wait("heartbeat")
    for number in range(5):
        reporter.event("mark", str(number))
        reporter.log("INFO", f"line {number}")

    with serving(Service(port=service.port)) as back:
        back.wait("events", 5)
        reporter.close()

    assert [body["message"] for body in back.bodies("events")] == ["0", "1", "2", "3", "4"]
    lines = [line["seq"] for body in back.bodies("logs") for line in body["lines"]]
    assert lines == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("status", [500, 503, 429])
def test_an_answer_that_asks_to_try_again_loses_nothing(status: int) -> None:
    with serving(Service(status=status)) as service:
        reporter = reporter_for(service)
        reporter.event("mark", "kept")
        service.status = 200
        service.wait("events")
        reporter.close()

    assert [body["message"] for body in service.bodies("events")] == ["kept"]


def test_a_stop_request_is_heard() -> None:
    with serving(Service(stop="pause")) as service:
        reporter = reporter_for(service)
        reporter.event("mark", "x")
        service.wait("events")
        reporter.close()

    assert reporter.stop_request == "pause"


def test_a_stale_fence_is_heard_and_nothing_more_is_sent() -> None:
    with serving(Service(status=409)) as service:
        reporter = reporter_for(service)
        reporter.close()

    assert reporter.superseded


def test_progress_keeps_the_newest_only() -> None:
    service = Service(status=503)
    with serving(service):
        reporter = reporter_for(service)
        for step in range(1000):
            reporter.progress(epoch=0, epochs=1, step=step, steps=1000, metrics={})
        service.status = 200
        reporter.close(timeout_s=20)

    steps = [body["step"] for body in service.bodies("progress")]
    assert steps[-1] == 999
    assert len(steps) < 10


def test_checkpoint_that_the_service_may_choose_is_spared_while_it_is_away() -> None:
    """Else an attempt that is cut off deletes what its successor was told to go on from."""

    def save(reporter: Reporter, step: int) -> None:
        reporter.checkpoint(path=f"step-{step}", step=step, epoch=0, digest="0", size_bytes=1, kept=[])

    with serving(Service()) as service:
        reporter = reporter_for(service)
        nothing = reporter.checkpoints_to_spare()
        save(reporter, 10)
        service.wait("checkpoints")
        reporter.event("mark", "behind it")
        service.wait("events")
        heard = reporter.checkpoints_to_spare()
    for step in (20, 30, 40):
        save(reporter, step)
    cut_off = reporter.checkpoints_to_spare()
    with serving(service):
        reporter.close()

    assert (nothing, heard, cut_off) == (set(), {10}, {10, 20})  # of 20 only the answer may be lost


def test_checkpoint_of_an_attempt_that_was_given_up_counts_as_unheard() -> None:
    with serving(Service()) as service:
        reporter = reporter_for(service)
        reporter.checkpoint(path="step-10", step=10, epoch=0, digest="0", size_bytes=1, kept=[])
        service.wait("checkpoints")
        service.status = 409
        reporter.checkpoint(path="step-20", step=20, epoch=0, digest="0", size_bytes=1, kept=[])
        reporter.close()

    assert reporter.superseded
    assert reporter.checkpoints_to_spare() == {10}


def test_silence_of_the_service_is_known_in_seconds() -> None:
    with serving(Service()) as service:
        reporter = reporter_for(service)
        service.wait("heartbeat")
        reporter.close()

    assert 0 < reporter.silent_s() < 20
