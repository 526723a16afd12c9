"""docs/reference/log-events.md names every event that the source logs, with its level, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.helpers.log_events import LogEvent, log_events
from tests.helpers.paths import ROOT

TABLE = ROOT / "docs" / "reference" / "log-events.md"
_ROW = re.compile(
    r"^\| (?P<level>[A-Z]+) \| `(?P<message>.+?)` \| `(?P<file>[\w/.]+)` \| (?P<rest>.+) \|$", re.MULTILINE
)


def in_source(root: Path) -> set[LogEvent]:
    return {LogEvent(one.file, one.level, " ".join(one.message.split())) for one in log_events(root)}


def in_table(text: str) -> list[LogEvent]:
    return [LogEvent(row["file"], row["level"], row["message"]) for row in _ROW.finditer(text)]


def test_table_has_a_row_for_every_event_of_the_source() -> None:
    listed = in_table(TABLE.read_text(encoding="utf-8"))

    assert sorted(in_source(ROOT) - set(listed)) == []
    assert sorted(set(listed) - in_source(ROOT)) == []
    assert len(set(listed)) == len(listed)


def test_every_row_says_what_the_event_means_and_what_to_do() -> None:
    rows = [row["rest"].split(" | ") for row in _ROW.finditer(TABLE.read_text(encoding="utf-8"))]

    assert [row for row in rows if len(row) != 2 or not all(cell.strip() for cell in row)] == []


SOURCE = """
logger.info("one", extra={"job": "a"})
self._logger.error("two: %s", error)
self._outage_log.failed(what, "three", error=str(error))
logger.exception("four " "and five")
other.info("no log call")
"""


def planted(root: Path, source: str) -> Path:
    (root / "service").mkdir()
    (root / "service" / "planted.py").write_text(source, encoding="utf-8")
    return root


def test_new_event_without_a_row_is_found(tmp_path: Path) -> None:
    found = in_source(planted(tmp_path, SOURCE))

    assert sorted((event.level, event.message) for event in found - set(in_table(TABLE.read_text()))) == [
        ("ERROR", "four and five"),
        ("ERROR", "two: %s"),
        ("INFO", "one"),
        ("WARNING", "three"),
    ]


def test_event_whose_text_is_put_together_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"service/planted\.py:1: the message of a log event must be a literal"):
        in_source(planted(tmp_path, 'logger.info(f"job {name}")\n'))
