"""Rows as another version, a person with psql, or a damaged disk may leave them: every column at its extremes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from syncnorm.service.store import schema
from syncnorm.service.store.database import Database

_KEPT = frozenset({"id", "job_id", "study_id", "number", "seq", "holder", "receiver", "digest", "owner"})
"""Columns by which rows are found, or belong to somebody."""
_TEXTS = {"of the future": "from_the_future", "empty": "", "long": "x" * 5000}
_TIMES = {"year 1": "0001-01-01T00:00:00.000000Z", "year 9999": "9999-12-31T23:59:59.999999Z", "a word": "yesterday"}
_WHOLE = {"-1": -1, "0": 0, "2**31-1": 2**31 - 1}
_NUMBERS = {"-1": -1.0, "0": 0.0, "1e308": 1e308, "1e15": 1e15, "NaN": float("nan"), "inf": float("inf")}
_JSON: dict[str, Any] = {"null": None, "[]": [], "{}": {}, "a word": "word", "a number": 7, "a list of null": [None]}


@dataclass(frozen=True)
class Damage:
    """A value for a column that its type allows, or that SQLite takes all the same. key: None: of a JSON's part."""

    table: str
    column: str
    kind: str
    value: Any = field(repr=False)

    @property
    def name(self) -> str:
        return f"{self.table}.{self.column}: {self.kind}"

    def apply(self, database: Database, key: dict[str, Any]) -> bool:
        """To the rows with this key; False: the database does not allow it."""
        column = schema.metadata.tables[self.table].c[self.column]
        is_json = isinstance(column.type, sa.JSON)
        place = "CAST(:value AS JSON)" if is_json and not database.is_sqlite else ":value"
        value = self.value(_present(database, column, key)) if callable(self.value) else self.value
        where = " AND ".join(f"{name} = :{name}" for name in key) or "1 = 1"
        statement = f"UPDATE {self.table} SET {self.column} = {place} WHERE {where}"
        bound = json.dumps(value) if is_json and self.kind != "NULL" else value
        try:
            with database.write() as connection:
                return connection.execute(sa.text(statement), {"value": bound, **key}).rowcount > 0
        except (sa.exc.SQLAlchemyError, ValueError, OverflowError):
            return False


def _present(database: Database, column: sa.Column[Any], key: dict[str, Any]) -> Any:
    wanted = [column.table.c[name] == value for name, value in key.items()]
    with database.read() as connection:
        return connection.execute(sa.select(column).where(*wanted)).scalar()


def of_table(name: str, *columns: str) -> list[Damage]:
    """Of every column, or of these."""
    table = schema.metadata.tables[name]
    wanted = columns or tuple(column.name for column in table.c if column.name not in _KEPT)
    return [
        Damage(name, column, kind, value)
        for column in wanted
        for kind, value in {"NULL": None, **dict(_values(table.c[column]))}.items()
    ]


def _values(column: sa.Column[Any]) -> Iterator[tuple[str, Any]]:
    if isinstance(column.type, schema.Instant):
        yield from _TIMES.items()
    elif isinstance(column.type, sa.JSON):
        yield from _JSON.items()
        yield "another key", lambda now: {**(now if isinstance(now, dict) else {}), "of_the_future": {"a": [1]}}
        for part in _PARTS.get(column.name, ()):
            yield f"without {part}", lambda now, part=part: _without(now, part)
            for kind, odd in (("null", None), ("a word", "odd"), ("1e308", 1e308), ("[]", [])):
                yield f"{part} is {kind}", lambda now, part=part, odd=odd: {**(now or {}), part: odd}
    elif isinstance(column.type, sa.Float):
        yield from _NUMBERS.items()
    elif isinstance(column.type, sa.Integer):
        yield from (_WHOLE | ({"2**63-1": 2**63 - 1} if isinstance(column.type, sa.BigInteger) else {})).items()
    else:
        yield from _TEXTS.items()


_PARTS = {
    "spec": ("model", "data", "norm", "train", "resources", "limits", "export", "env", "grid", "base", "metrics"),
    "progress": ("step", "steps", "epoch", "metrics", "eta_s", "percent"),
    "result": ("fence", "outcome", "reason", "step", "metrics", "model"),
    "phases": ("training", "starting_workers"),
    "model": ("uri", "registered", "certificate"),
    "section": ("formats", "fold"),
}
"""Keys that are taken out of JSON, or hold something else."""


def _without(value: Any, part: str) -> Any:
    return {name: inner for name, inner in value.items() if name != part} if isinstance(value, dict) else value
