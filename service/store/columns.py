"""How columns of a row are read, one at a time: what can't be read is replaced and named, and hurts nothing else.

A row may have been written by another version, by hand, or before a bound was there: a state nobody knows, a date that
is none, JSON that is cut off, an infinite number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from functools import cached_property
from types import NoneType
from typing import Any, Generic, TypeVar

import sqlalchemy as sa
from pydantic_core import from_json

from syncnorm.service.store import schema as t
from syncnorm.trainer.contract.bounds import MOST_WORKERS
from syncnorm.trainer.contract.text import storable

T = TypeVar("T")
_LONGEST_SHOWN = 60


class UnreadableError(ValueError):
    """A row has an invalid value."""


def one_of(allowed: Sequence[str]) -> Callable[[str], str]:
    def check(value: str) -> str:
        if value not in allowed:
            raise UnreadableError(f"must be one of {', '.join(allowed)}")
        return value

    return check


def workers(value: int) -> int:
    """Of an attempt, which holds capacity for each."""
    if not 1 <= value <= MOST_WORKERS:
        raise UnreadableError(f"must be a whole number from 1 to {MOST_WORKERS}")
    return value


def count(value: int) -> int:
    """A number that is added to, and must not grow out of its column by that."""
    if abs(value) > _HIGHEST_COUNT:
        raise UnreadableError(f"must be a whole number from -{_HIGHEST_COUNT} to {_HIGHEST_COUNT}")
    return value


_HIGHEST_COUNT = 10**9


def finite(value: float) -> float:
    if not math.isfinite(value):
        raise UnreadableError("must be a finite number")
    return value


def json_text(value: str) -> str:
    from_json(value, allow_inf_nan=False)
    return value


@dataclass(frozen=True)
class Column:
    """name, allowed Python types, a further check that makes the value, and the value that replaces an unreadable
    one."""

    name: str
    kinds: frozenset[type]
    read: Callable[[Any], Any] | None
    default: Any

    def value(self, raw: Any) -> Any:
        """Raises: Exception, of any kind, if the row has an invalid value."""
        if type(raw) not in self.kinds:
            raise UnreadableError(f"must be {_type_names(self.kinds)}")
        return raw if raw is None or self.read is None else self.read(raw)


def _type_names(kinds: frozenset[type]) -> str:
    return " or ".join(sorted(_TYPE_NAMES[kind] for kind in kinds))


_TYPE_NAMES = {NoneType: "null", datetime: "a time", str: "text", int: "a whole number", float: "a number"}
_TYPE_NAMES |= {dict: "a JSON object", list: "a JSON array"}


@dataclass(frozen=True)
class RowReader(Generic[T]):
    """How rows of one table are read.

    columns: in the order of the value's fields, so that rows are read by position: reading by name takes three times as
    long.
    """

    table: sa.Table
    make: Callable[..., T]
    columns: tuple[Column, ...]

    @cached_property
    def query(self) -> sa.Select[Any]:
        return sa.select(*(self.table.c[column.name] for column in self.columns))

    @cached_property
    def _names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    @cached_property
    def _kinds(self) -> tuple[frozenset[type], ...]:
        return tuple(column.kinds for column in self.columns)

    @cached_property
    def _readers(self) -> tuple[tuple[str, Callable[[Any], Any]], ...]:
        return tuple((column.name, column.read) for column in self.columns if column.read is not None)

    def read(self, row: Sequence[Any]) -> T:
        """Raises: Exception if a value of the row is invalid."""
        for raw, kinds in zip(row, self._kinds, strict=True):
            if type(raw) not in kinds:
                raise UnreadableError(f"must be {_type_names(kinds)}")
        values = dict(zip(self._names, row, strict=True))
        for name, read in self._readers:
            if values[name] is not None:
                values[name] = read(values[name])
        return self.make(**values)

    def salvage(self, row: Sequence[Any], now: datetime) -> tuple[T, dict[str, Any], str]:
        """(the readable values, with replacements for the others, and the problems)."""
        values, mended, wrong = {}, {}, []
        for column, raw in zip(self.columns, row, strict=True):
            try:
                values[column.name] = column.value(raw)
            except Exception as error:
                mended[column.name] = default = now if column.default is datetime else column.default
                values[column.name] = default if column.read is None or default is None else column.read(default)
                wrong.append(f"{column.name} {error}, got {_shown(raw)}")
        return self.make(**values), mended, storable("; ".join(wrong), 500)


def _shown(raw: Any) -> str:
    text = repr(raw) if isinstance(raw, str | int | float | NoneType) else f"{type(raw).__name__} {raw}"
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + " …"


Special = Mapping[str, tuple[Callable[[Any], Any] | None, Any]]
"""(further check that makes the value, replacement of an unreadable one) for columns whose type does not say it."""


def row_reader(table: sa.Table, value: type[T], special: Special) -> RowReader[T]:
    columns = (table.c[item.name] for item in fields(value) if item.name in table.c)  # type: ignore[arg-type]
    return RowReader(table, value, tuple(column_of(column, special) for column in columns))


def column_of(column: sa.Column[Any], special: Special) -> Column:
    kinds, read, default = _KINDS[type(column.type)]
    if column.name in _LISTS:
        kinds, default = frozenset({list}), []
    if column.nullable:
        kinds, default = kinds | {NoneType}, None
    read, default = special.get(column.name, (read, default))
    return Column(column.name, kinds, read, default)


_LISTS = frozenset({"placement", "scopes", "threads"})
_KINDS: dict[type, tuple[frozenset[type], Callable[[Any], Any] | None, Any]] = {
    t.Instant: (frozenset({datetime}), None, datetime),
    sa.Integer: (frozenset({int}), None, 0),
    sa.BigInteger: (frozenset({int}), None, 0),
    sa.Float: (frozenset({float, int}), finite, 0.0),
    sa.String: (frozenset({str}), None, ""),
    sa.Text: (frozenset({str}), None, ""),
    sa.JSON: (frozenset({dict}), None, {}),
}


def read_or_salvage(reader: RowReader[T], row: Sequence[Any]) -> tuple[T, str | None]:
    """(the value, what is wrong with its row)."""
    try:
        return reader.read(row), None
    except Exception:
        value, _, wrong = reader.salvage(row, datetime.now(UTC))
        return value, wrong
