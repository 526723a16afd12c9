"""What a module logs besides metrics, in order: one line for each file, param and tag, until MLflow has it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from syncnorm.trainer.contract.text import storable
from syncnorm.trainer.reporting.run_logger.artifact_paths import LOGGED

KINDS = ("file", "param", "tag", "rows")


class Entry(NamedTuple):
    """kind: one of KINDS. name: a path in the run's artifacts, or a key.

    value: of a file its size in bytes; of rows, the step and the number of rows that a table has from then on.
    """

    kind: str
    name: str
    value: str


def journal_path(artifacts: Path) -> Path:
    """Below the artifacts, so that it is stored whenever they are."""
    return artifacts / LOGGED / "journal.jsonl"


def append_entry(artifacts: Path, entry: Entry) -> None:
    """Add a line. The journal is made with the first one."""
    path = journal_path(artifacts)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps([storable(part) for part in entry]) + "\n")


def read_journal(path: Path, offset: int = 0) -> Iterator[tuple[Entry | None, int]]:
    """Whole lines from `offset` on, each with the offset after it. None: the line is damaged."""
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            yield _parse(line), offset


def _parse(line: bytes) -> Entry | None:
    try:
        kind, name, value = json.loads(line)
    except (ValueError, TypeError, RecursionError):
        return None
    is_entry = kind in KINDS and isinstance(name, str) and isinstance(value, str)
    return Entry(kind, name, value) if is_entry else None
