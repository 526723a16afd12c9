"""What an attempt tells the service arrives in order, once, and later if it can't arrive now."""

from __future__ import annotations

import json
import logging
import math
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from syncnorm.trainer.contract.protocol import Launch, Result
from syncnorm.trainer.contract.spec_reader import read_spec
from syncnorm.trainer.reporting.delivery import EVENTS_KEPT
from syncnorm.trainer.reporting.log_buffer import CHARACTERS_KEPT, LogBuffer
from syncnorm.trainer.reporting.log_handler import ReportingHandler
from syncnorm.trainer.reporting.reporter import Reporter
from syncnorm.trainer.reporting.stdout_capture import captured

SPEC = read_spec({"name": "a", "model": {"name": "mlp"}, "data": {"name": "digits", "batch_size": 4}})


@dataclass
class Service:
    """The other end: keeps what it is sent and answers as told."""

    port: int = 0
    status: int = 200
    stop: str | None = None
    refuses: dict[str, int] = field(default_factory=dict)
    """Status by path."""
    refused: Counter[str] = field(default_factory=Counter)
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
            path = self.path.rsplit("/", 1)[-1]
            status = service.refuses.get(path, service.status)
            service.refused[path] += status != 200
            if status == 200:  # before the answer: the next message comes to another thread
                with service.changed:
                    service.received.append((path, body))
                    service.changed.notify_all()
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

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


class Odd:
    def __str__(self) -> str:
        raise RuntimeError("no text of it")

    def __float__(self) -> float:
        raise RuntimeError("no number either")


def lines_of(service: Service) -> list[str]:
    return [line["text"] for body in service.bodies("logs") for line in body["lines"]]


@pytest.mark.parametrize(
    "say",
    [
        lambda reporter: reporter.log("WARNING", "reading caf\udce9.png"),
        lambda reporter: reporter.log("INFO", "header \x00\x01"),
        lambda reporter: reporter.log("INFO", Odd()),
        lambda reporter: reporter.log("FATAL", "a level that there is not"),
        lambda reporter: reporter.log("INFO", "x" * 3_000_000),
        lambda reporter: reporter.event("mark", "caf\udce9", value=np.float32(0.5), thing=Odd(), big=10**5000),
        lambda reporter: reporter.event(Odd(), Odd()),
        lambda reporter: reporter.event("k" * 1000, "m" * 1_000_000, deep=[[[[[[[[[[[[1]]]]]]]]]]]]),
        lambda reporter: reporter.exit(Result(fence="f", outcome="failed", message="\udce9\x00", step=2**70)),
        lambda reporter: reporter.progress(
            epoch=1,
            epochs=None,
            step=1,
            steps=None,
            metrics={"nan": math.nan, "odd": Odd(), "big": 10**400, "\udce9": 1},
        ),
        lambda reporter: ReportingHandler(reporter).handle(
            logging.makeLogRecord({"name": "own", "levelno": 30, "msg": "%d", "args": ("no number",)})
        ),
    ],
)
def test_whatever_it_is_given_it_goes_on(say: Any) -> None:
    with serving(Service()) as service:
        reporter = reporter_for(service)
        say(reporter)
        reporter.log("INFO", "and on")
        reporter.checkpoint(path="step-10", step=10, epoch=0, digest="0", size_bytes=1, kept=[])
        service.wait("checkpoints")
        reporter.close()

    assert lines_of(service)[-1] == "and on"
    assert not any("reporter_failed" in body["kind"] for body in service.bodies("events"))


def test_metrics_that_are_not_finite_are_told_as_words() -> None:
    with serving(Service()) as service:
        reporter = reporter_for(service)
        metrics = {"val/dice": math.nan, "val/loss": math.inf, "lr": 0.5}
        reporter.progress(epoch=1, epochs=None, step=1, steps=None, metrics=metrics)
        reporter.close()

    assert service.bodies("progress")[-1]["metrics"] == {"val/dice": "NaN", "val/loss": "Infinity", "lr": 0.5}


@pytest.mark.parametrize("status", [422, 413, 404])
def test_refused_message_is_left_out_and_said_so_once(status: int, caplog: pytest.LogCaptureFixture) -> None:
    with serving(Service(refuses={"events": status})) as service:
        reporter = reporter_for(service)
        for number in range(5):
            reporter.event("mark", str(number))
        reporter.checkpoint(path="step-10", step=10, epoch=0, digest="0", size_bytes=1, kept=[])
        service.wait("checkpoints")
        reporter.close()

    assert len([record for record in caplog.records if record.message.startswith("dropped")]) == 1
    assert not service.bodies("events")


def test_refusal_of_log_lines_does_not_feed_itself() -> None:
    with serving(Service(refuses={"logs": 422})) as service:
        reporter = reporter_for(service)
        handler = ReportingHandler(reporter)
        logging.getLogger().addHandler(handler)
        reporter.log("INFO", "one")
        reporter.checkpoint(path="step-10", step=10, epoch=0, digest="0", size_bytes=1, kept=[])
        service.wait("checkpoints")
        reporter.close(timeout_s=5)
        logging.getLogger().removeHandler(handler)

    assert service.refused["logs"] < 5


def test_lines_that_the_service_fails_to_take_hold_up_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("syncnorm.trainer.reporting.reporter.TRIES", 2)
    monkeypatch.setattr("syncnorm.trainer.reporting.reporter.HEARTBEAT_S", 0.2)
    with serving(Service(refuses={"logs": 500})) as service:
        reporter = reporter_for(service)
        reporter.log("INFO", "poison")
        reporter.checkpoint(path="step-10", step=10, epoch=0, digest="0", size_bytes=1, kept=[])
        service.wait("checkpoints")
        service.wait("heartbeat", 8)
        service.refuses = {}
        reporter.log("INFO", "later")
        service.wait("logs")
        reporter.exit(Result(fence="f", outcome="succeeded"))
        reporter.close()

    assert lines_of(service)[-1] == "later"
    assert "poison" not in lines_of(service)
    assert service.bodies("exit")


def test_failure_of_its_thread_is_said_and_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = Reporter._send_all, []

    def failing(reporter: Reporter) -> bool:
        calls.append(1)
        if len(calls) == 2:
            raise SystemExit("a defect")
        return real(reporter)

    monkeypatch.setattr(Reporter, "_send_all", failing)
    with serving(Service()) as service:
        reporter = reporter_for(service)
        service.wait("events")
        reporter.close()

    assert service.bodies("events")[0]["kind"] == "reporter_failed"
    assert any("could not report" in text for text in lines_of(service))


def test_flood_is_cut_at_the_source_and_says_how_much_is_missing() -> None:
    with serving(Service()) as service:
        reporter = reporter_for(service)
        for number in range(50_000):
            reporter.log("INFO", f"{number} {'x' * 1900}")
        reporter.log("ERROR", "what matters")
        reporter.event("mark", "not delayed")
        service.wait("events")
        reporter.close()

    texts = lines_of(service)
    left_out = sum(int(text.split()[1].replace(",", "")) for text in texts if "lines dropped here" in text)
    assert "what matters" in texts
    assert len([text for text in texts if text[:1].isdigit()]) + left_out == 50_000
    assert left_out > 45_000
    assert all(len(json.dumps(body)) < 2**20 for body in service.bodies("logs"))


def test_what_is_kept_while_the_service_is_away_is_bounded() -> None:
    buffer = LogBuffer(0, 1, clock=iter(range(10**9)).__next__)
    for number in range(10_000):
        buffer.add("INFO", f"{number} {'x' * 8000}")

    lines = buffer.batch()

    assert sum(len(line.text) for line in buffer._lines) <= CHARACTERS_KEPT
    assert len(lines) < 20
    while following := buffer.batch():
        lines = following
        buffer.forget(following)
    assert "earlier lines dropped" in lines[-1].text


def test_events_beyond_what_is_kept_are_counted() -> None:
    with serving(Service(status=503)) as service:
        reporter = reporter_for(service)
        for number in range(EVENTS_KEPT + 5):
            reporter.event("mark", str(number))
        service.status = 200
        service.wait("events", EVENTS_KEPT + 1)
        reporter.close(timeout_s=20)

    assert service.bodies("events")[-1]["kind"] == "events_left_out"
    assert service.bodies("events")[-1]["message"].startswith("5 events")
