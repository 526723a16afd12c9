from __future__ import annotations

import builtins
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from ray._private.log import PlainRayHandler
from ray.train.v2._internal.logging.patch_print import redirected_print

from syncnorm.trainer.reporting.log_handler import ReportingHandler
from syncnorm.trainer.reporting.stdout_capture import captured
from tests.helpers.trainer.ranks import RecordingReporter


class Heard(RecordingReporter):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[str, str]] = []

    def log(self, *line: Any) -> None:
        self.lines.append(line)


@pytest.fixture
def heard() -> Heard:
    return Heard()


def test_lines_go_to_the_logs_and_where_they_went_before(heard: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with captured(heard):
        print("shape", (3, 4))
        print("half a ", end="")
        print("line\n\nand a last one", end="")

    assert heard.lines == [("INFO", "shape (3, 4)"), ("INFO", "half a line"), ("INFO", "and a last one")]
    assert capsys.readouterr().out.startswith("shape (3, 4)\nhalf a line\n")


def test_standard_error_is_a_warning_and_a_progress_bar_one_line(heard: Any) -> None:
    with captured(heard):
        sys.stderr.write("\r 10%|#  |\r 50%|## |\r100%|###|\n")

    assert heard.lines == [("WARNING", "100%|###|")]


@pytest.mark.parametrize("handler", [logging.StreamHandler(), PlainRayHandler()])
def test_log_records_do_not_come_twice(heard: Any, handler: logging.Handler) -> None:
    told = ReportingHandler(heard)
    with captured(heard), on_root(told), on_root(handler):
        logging.getLogger("own").warning("once")
        print("between", file=sys.stderr)
        logging.getLogger("own").error("again")

    assert heard.lines == [("WARNING", "once"), ("WARNING", "between"), ("ERROR", "again")]


def test_logger_that_keeps_its_records_to_itself_is_heard_by_what_it_prints(heard: Any) -> None:
    own = logging.getLogger("lonely")
    own.propagate = False
    with captured(heard), on_root(ReportingHandler(heard)):
        handler = logging.StreamHandler()
        own.addHandler(handler)
        own.warning("once")
        own.removeHandler(handler)

    assert heard.lines == [("WARNING", "once")]


def test_print_of_ray_train_does_not_come_twice(heard: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtins, "print", redirected_print)
    with captured(heard), on_root(ReportingHandler(heard)):
        print("once")
        print("to standard error", file=sys.stderr)

    assert heard.lines == [("INFO", "once"), ("WARNING", "to standard error")]
    assert builtins.print is redirected_print


@contextmanager
def on_root(handler: logging.Handler) -> Iterator[None]:
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)


def test_streams_are_put_back(heard: Any) -> None:
    before = sys.stdout, sys.stderr

    with pytest.raises(KeyError), captured(heard):
        raise KeyError

    assert (sys.stdout, sys.stderr) == before
