"""What the service says of itself."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from syncnorm.service.telemetry import logging as logs


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def loggers_as_they_were() -> Iterator[None]:
    root = logging.getLogger()
    levels = {name: logging.getLogger(name).level for name in ("", "syncnorm")}
    handlers = list(root.handlers)
    yield
    root.handlers = handlers
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def say() -> None:
    logging.getLogger("syncnorm.x").info(
        ("job state changed"), extra={"job": "job_1", "from": "queued", "to": "starting"}
    )
    logging.getLogger("syncnorm.x").debug("not this")
    logging.getLogger("httpx").info("nor this")
    try:
        raise ValueError("boom\nwith a second line")
    except ValueError:
        logging.getLogger("httpx").exception("failed")


@pytest.fixture(autouse=True)
def stamped() -> Iterator[None]:
    """Records as they are once Ray is imported, in this process or another test's: with a field of its own."""
    usual = logging.getLogRecordFactory()

    def factory(*args: object, **options: object) -> logging.LogRecord:
        record = usual(*args, **options)
        vars(record)["_ray_timestamp_ns"] = 1
        return record

    logging.setLogRecordFactory(factory)
    yield
    logging.setLogRecordFactory(usual)


def test_elsewhere_each_record_is_one_line_of_json_with_its_fields() -> None:
    stream = io.StringIO()
    logs.configure(stream)

    say()

    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert first | {"at": ""} == {
        "at": "",
        "level": "INFO",
        "logger": "syncnorm.x",
        "message": "job state changed",
        "job": "job_1",
        "from": "queued",
        "to": "starting",
    }
    assert first["at"].endswith("+00:00")
    assert "ValueError: boom\nwith a second line" in second["traceback"]


def test_on_a_terminal_people_read_it() -> None:
    stream = Terminal()
    logs.configure(stream)

    say()

    first, second, *rest = stream.getvalue().splitlines()
    assert first[8:] == " INFO     job state changed  job=job_1  from=queued  to=starting"
    assert second[8:] == " ERROR    failed"
    assert rest[-2:] == ["ValueError: boom", "with a second line"]


def test_what_a_request_brings_commands_no_terminal_and_makes_no_line_of_its_own() -> None:
    stream = Terminal()
    logs.configure(stream)

    logging.getLogger("syncnorm.x").info(
        "refused", extra={"path": "/v1/jobs/\x1b[2J\n12:00:00 INFO  all is well\u202e"}
    )

    (line,) = stream.getvalue().splitlines()
    assert line.endswith(r"refused  path=/v1/jobs/\x1b[2J\n12:00:00 INFO  all is well\u202e")
