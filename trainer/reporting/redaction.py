"""Removes secrets from text: from messages, and from everything a process logs or prints, however it prints it.

Imports nothing outside the standard library, because the process that filters the output runs this file.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

_SHORTEST = 4
"""Shorter values occur everywhere by chance."""
_LONGEST_LINE = 2**16
_END_S = 5.0


def redact(text: str, values: Iterable[str]) -> str:
    """`text`, plain or JSON, without the values: each, and each longer line of one, becomes `***`."""
    for value in values:
        for piece in (value, *value.splitlines()):
            if len(piece) >= _SHORTEST:
                text = text.replace(piece, "***").replace(json.dumps(piece, ensure_ascii=False)[1:-1], "***")
    return text


@contextmanager
def redacted_output(values: Iterable[str]) -> Iterator[None]:
    """Within, what this process and its children write to file descriptors 1 and 2 arrives without the values, and log
    records are made without them, for Ray Train writes those to files of its own.

    A process for each of the two reads along and writes on line by line: user code may print past Python, and Ray
    keeps what its workers print in files. Not a thread: whoever prints while holding the interpreter would wait for it.
    """
    hidden = list(values)
    with ExitStack() as stack:
        if hidden:
            stack.enter_context(_through_reader(1, sys.stdout, hidden))
            stack.enter_context(_through_reader(2, sys.stderr, hidden))
            stack.enter_context(_redacted_records(hidden))
        yield


@contextmanager
def _redacted_records(values: list[str]) -> Iterator[None]:
    make = logging.getLogRecordFactory()

    def redacted(*args: Any, **options: Any) -> logging.LogRecord:
        record = make(*args, **options)
        with suppress(
            Exception
        ):  # arguments that don't fit the message: logging reports that itself, on standard error
            record.msg, record.args = redact(record.getMessage(), values), None
        if record.exc_info:
            record.exc_text = redact(logging.Formatter().formatException(record.exc_info), values)
        return record

    logging.setLogRecordFactory(redacted)
    try:
        yield
    finally:
        logging.setLogRecordFactory(make)


@contextmanager
def _through_reader(number: int, stream: object, values: list[str]) -> Iterator[None]:
    _flush(stream)
    original = os.dup(number)
    command = [sys.executable, "-I", "-S", __file__]
    # Without the secrets in its environment. It runs for as long as any process holds the other end.
    reader = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=original, env={}, start_new_session=True)
    assert reader.stdin is not None
    try:
        reader.stdin.write(json.dumps(values).encode() + b"\n")
        reader.stdin.flush()
        os.dup2(reader.stdin.fileno(), number)
        reader.stdin.close()
        yield
    finally:
        _flush(stream)
        os.dup2(original, number)
        os.close(original)
        with suppress(subprocess.TimeoutExpired):  # a child of ours still prints, so the reader keeps running
            reader.wait(_END_S)


def _flush(stream: object) -> None:
    with suppress(OSError, ValueError):
        stream.flush()  # type: ignore[attr-defined]


def _read_along() -> None:
    """Copy standard input, without the values in its first line, to standard output, until its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    rest = b""
    while b"\n" not in rest:
        rest += os.read(0, _LONGEST_LINE)
    first, _, rest = rest.partition(b"\n")
    values: list[str] = json.loads(first)
    longest = max(len(value.encode()) for value in values)
    read, rest = rest or os.read(0, _LONGEST_LINE), b""
    while read:
        rest = _without(rest + read, values)
        end = max(rest.rfind(b"\n"), rest.rfind(b"\r")) + 1
        if not end and len(rest) > _LONGEST_LINE + longest:
            end = len(rest) - longest  # a line without an end: everything except a possible beginning of a value
        _write(rest[:end])
        read, rest = os.read(0, _LONGEST_LINE), rest[end:]
    _write(rest)


def _without(text: bytes, values: list[str]) -> bytes:
    return redact(text.decode("utf-8", "surrogateescape"), values).encode("utf-8", "surrogateescape")


def _write(text: bytes) -> None:
    while text:
        text = text[os.write(1, text) :]


if __name__ == "__main__":
    _read_along()
