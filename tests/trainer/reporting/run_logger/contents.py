"""What a logger has written to an attempt's folder."""

from __future__ import annotations

import json
from pathlib import Path

from syncnorm.trainer.reporting.run_logger.journal import journal_path, read_journal


def metrics(artifacts: Path) -> list[tuple[str, int, float]]:
    lines = (artifacts.parent / "metrics.jsonl").read_text().splitlines()
    return [(point["key"], point["step"], point["value"]) for point in map(json.loads, lines)]


def entries(artifacts: Path, kind: str) -> dict[str, str]:
    found = [entry for entry, _ in read_journal(journal_path(artifacts))]
    return {entry.name: entry.value for entry in found if entry is not None and entry.kind == kind}


def files(artifacts: Path) -> list[str]:
    """All but the journal. Each is also in the journal."""
    found = sorted(path.relative_to(artifacts).as_posix() for path in artifacts.rglob("*") if path.is_file())
    kept = [name for name in found if name != "logged/journal.jsonl"]
    assert sorted(entries(artifacts, "file")) == kept
    return kept
