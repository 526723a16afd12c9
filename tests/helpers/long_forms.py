"""A part of the long forms, and a table of how they ended: `python -m tests.helpers.long_forms RECORD`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT


@dataclass(frozen=True)
class Ended:
    """One test. fraction: how much of its amounts it did, from CHAOS_FRACTION."""

    test: str
    outcome: str
    seconds: float
    fraction: float
    commit: str
    date: str


class Record:
    """A plugin that appends each test to a file as soon as it has ended, so that a run may be cut."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._fraction = float(os.environ.get("CHAOS_FRACTION", "1"))
        head = ["git", "rev-parse", "--short", "HEAD"]
        self._commit = subprocess.run(head, check=True, cwd=ROOT, capture_output=True, text=True).stdout.strip()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        day = datetime.now(UTC).date().isoformat()
        ended = Ended(report.nodeid, report.outcome, report.duration, self._fraction, self._commit, day)
        with self._file.open("a") as file:
            file.write(json.dumps(asdict(ended)) + "\n")


def part_of(count: int, part: str) -> set[int]:
    """Which of `count` tests part "3/12" has: every twelfth, from the third on. Raises: ValueError."""
    number, _, parts = part.partition("/")
    if not 1 <= int(number) <= int(parts):
        raise ValueError(f"a part must be like 3/12, from 1/12 to 12/12, got {part}")
    return set(range(int(number) - 1, count, int(parts)))


def as_table(ended: Iterable[Ended]) -> str:
    """By file: what its tests did when they ran last."""
    last = {one.test: one for one in ended}
    files: dict[str, list[Ended]] = {}
    for one in last.values():
        files.setdefault(one.test.partition("::")[0], []).append(one)
    rows = ["| file | passed | failed | skipped | seconds | share | commit | date |", f"|{'---|' * 8}"]
    for name, found in sorted(files.items()):
        counts = (sum(one.outcome == kind for one in found) for kind in ("passed", "failed", "skipped"))
        newest = max(found, key=lambda one: one.date)
        seconds, share = sum(one.seconds for one in found), min(one.fraction for one in found)
        cells = (f"`{name}`", *counts, f"{seconds:.0f}", f"{share:g}", newest.commit, newest.date)
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(as_table(Ended(**json.loads(line)) for line in Path(sys.argv[1]).read_text().splitlines()))
