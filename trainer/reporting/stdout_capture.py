"""Copies what user code prints, line by line, into the job's logs."""

from __future__ import annotations

import builtins
import io
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from types import FrameType
from typing import TextIO

from syncnorm.trainer.reporting.log_buffer import Level
from syncnorm.trainer.reporting.reporter import Reporter


class _Tee(io.TextIOBase):
    """Passes everything on, and sends every whole line to the reporter. Of a progress bar's line, its last state."""

    def __init__(self, original: TextIO, reporter: Reporter, level: Level) -> None:
        self._original, self._reporter, self._level = original, reporter, level
        self._lock = threading.Lock()
        self._rest = ""

    def write(self, text: str) -> int:
        self._original.write(text)
        # Log records reach the reporter anyway; one of the request that sends the lines must not.
        if _writes_for_the_root_logger() or self._reporter.is_sending():
            return len(text)
        with self._lock:
            *lines, self._rest = (self._rest + text).split("\n")
            self._rest = self._rest[-8192:]
        for line in lines:
            if shown := line.rstrip("\r").rsplit("\r", 1)[-1].rstrip():
                self._reporter.log(self._level, shown)
        return len(text)

    def flush(self) -> None:
        self._original.flush()

    def isatty(self) -> bool:
        return False

    def close_line(self) -> None:
        """Send a last line without an end, too."""
        if self._rest:
            self.write("\n")


_FRAMES = 8
"""From a handler down to the stream: Ray's takes four."""


def _writes_for_the_root_logger() -> bool:
    """Whether the caller's caller is at work for a handler of the root logger, as Ray's is, who looks sys.stderr up."""
    frame: FrameType | None = sys._getframe(2)
    for _ in range(_FRAMES):
        if frame is None:
            return False
        if frame.f_code is logging.Handler.handle.__code__:
            return frame.f_locals["self"] in logging.getLogger().handlers
        frame = frame.f_back
    return False


@contextmanager
def _plain_print() -> Iterator[None]:
    """Within the block, print is Python's own: Ray Train's (2.60) also makes a log record of each line, so lines would
    appear twice."""
    current = builtins.print
    builtins.print = getattr(sys.modules.get(current.__module__), "_original_print", current)
    try:
        yield
    finally:
        builtins.print = current


@contextmanager
def captured(reporter: Reporter) -> Iterator[None]:
    """Within, what is printed to standard output is also an INFO line of the job's logs, to standard error a WARNING.

    Log records don't come twice: those of the root logger go to a ReportingHandler, and what other handlers there write
    is not looked at.
    """
    out, err = _Tee(sys.stdout, reporter, "INFO"), _Tee(sys.stderr, reporter, "WARNING")
    with redirect_stdout(out), redirect_stderr(err), _plain_print():
        try:
            yield
        finally:
            out.close_line()
            err.close_line()
