"""Tables of the run, in the form that MLflow shows. Rows that are logged to one file add up, also after a resume."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from syncnorm.trainer.contract.text import storable_json, text_of
from syncnorm.trainer.reporting.run_logger.artifact_paths import artifact_path
from syncnorm.trainer.reporting.run_logger.journal import Entry, journal_path, read_journal
from syncnorm.trainer.reporting.run_logger.run_writer import RunWriter

_SHOWN_AS_TABLES = "mlflow.loggedArtifacts"
"""The tag by which MLflow's page knows tables (mlflow 3.17)."""


@dataclass
class Table:
    """Rows of cells. A row that lacks a column has None there."""

    columns: list[str] = field(default_factory=list)
    rows: list[list[Any]] = field(default_factory=list)

    def append(self, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        new = [name for name in columns if name not in self.columns]
        self.columns += new
        self.rows = [row + [None] * len(new) for row in self.rows]
        for row in rows:
            cells = dict(zip(columns, row, strict=False))
            self.rows.append([cells.get(name) for name in self.columns])

    def encode(self, suffix: str) -> bytes:
        """As CSV, or as JSON in the form of MLflow's tables."""
        if suffix == ".csv":
            text = io.StringIO()
            csv.writer(text).writerows([self.columns, *self.rows])
            return text.getvalue().encode(errors="replace")
        return json.dumps({"columns": self.columns, "data": self.rows}, ensure_ascii=False).encode(errors="replace")

    @classmethod
    def decode(cls, content: bytes, suffix: str) -> Table:
        if suffix == ".csv":
            columns, *rows = csv.reader(io.StringIO(content.decode()))
            return cls(columns, rows)
        found = json.loads(content)
        return cls(found["columns"], found["data"])


class TableWriter:
    """The tables of one attempt, by their path. A resumed attempt begins with the rows that it doesn't log again."""

    def __init__(self, run: RunWriter) -> None:
        self._run = run
        self._tables: dict[str, Table] = {}

    def add(self, data: Any, file: str, *, columns: Sequence[str] | None = None, step: Any = None) -> None:
        """Append rows to the table `file`. data: see rows_of."""
        path, number = artifact_path(file if PurePosixPath(file).suffix else f"{file}.json"), self._run.step_of(step)
        suffix = PurePosixPath(path).suffix
        try:
            names, rows = rows_of(data, columns)
            table = self._tables.setdefault(
                path, self._earlier_rows(path, number) if path not in self._tables else Table()
            )
            table.append(names, rows)
            content = table.encode(suffix)
        except Exception as error:  # a library may raise anything for what a user gives it
            self._run.losses.add(f"table {file}", f"{type(error).__name__}: {error}.")
            return
        self._run.write(path, content)
        self._run.note(Entry("rows", path, f"{number} {len(table.rows)}"))
        shown = [{"path": name, "type": "table"} for name in sorted(self._tables) if name.endswith(".json")]
        self._run.tags({_SHOWN_AS_TABLES: json.dumps(shown)})

    def _earlier_rows(self, path: str, step: int) -> Table:
        """The table as it was before `step`, from the newest earlier attempt that has it."""
        for artifacts in reversed(self._run.earlier):
            if (artifacts / path).is_file():
                kept = _rows_before(artifacts, path, step)
                table = Table.decode((artifacts / path).read_bytes(), PurePosixPath(path).suffix)
                return Table(table.columns, table.rows[:kept])
        return Table()


def _rows_before(artifacts: Path, path: str, step: int) -> int:
    kept = 0
    for entry, _ in read_journal(journal_path(artifacts)):
        if entry is not None and entry.kind == "rows" and entry.name == path:
            at, count = (int(part) for part in entry.value.split())
            kept = count if at < step else kept
    return kept


def rows_of(data: Any, columns: Sequence[str] | None = None) -> tuple[list[str], list[list[Any]]]:
    """Names and rows of a pandas DataFrame, a mapping of columns, or a sequence of rows.

    >>> rows_of({"word": ["a", "b"], "score": [1.0, 0.5]})
    (['word', 'score'], [['a', 1.0], ['b', 0.5]])
    """
    if hasattr(data, "itertuples"):
        names = [text_of(name) for name in data.columns]
        return names, [[storable_json(cell) for cell in row] for row in data.itertuples(index=False)]
    if isinstance(data, Mapping):
        filled = {text_of(name): _cells(column) for name, column in data.items()}
        return list(filled), [[storable_json(cell) for cell in row] for row in zip(*filled.values(), strict=True)]
    rows = [[storable_json(cell) for cell in _cells(row)] for row in _cells(data)]
    width = max(map(len, rows), default=0)
    return [*map(str, columns or ())] or [f"column {number}" for number in range(width)], rows


def _cells(value: Any) -> list[Any]:
    if hasattr(value, "tolist"):  # a tensor or an array
        value = value.tolist()
    return list(value) if isinstance(value, list | tuple) else [value]
