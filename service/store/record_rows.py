"""Rows that are shown, and on which the reconciler does not act: of each, what can be read, and what can't by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Generic, TypeVar, get_args

from syncnorm.service.jobs.actors import ActorKind, Outcome
from syncnorm.service.jobs.study import Study, StudyChild
from syncnorm.service.store import schema as t
from syncnorm.service.store.columns import RowReader, Special, UnreadableError, one_of, read_or_salvage, row_reader
from syncnorm.service.store.values import (
    AuditEntry,
    StoredCheckpoint,
    StoredEvent,
    StoredLine,
    StoredProfile,
    StoredSecret,
    StoredStacks,
    StoredToken,
)

T = TypeVar("T")


@dataclass(frozen=True)
class Record(Generic[T]):
    """says: the field in which it is said what of a row can't be read."""

    reader: RowReader[T]
    says: str

    @property
    def query(self) -> Any:
        return self.reader.query

    def of(self, row: Sequence[Any]) -> T:
        value, wrong = read_or_salvage(self.reader, row)
        if wrong is None:
            return value
        said = f"{getattr(value, self.says) or ''} [This row can't be read as a whole: {wrong}.]".strip()
        return replace(value, **{self.says: said})  # type: ignore[type-var]


def _record(table: Any, value: type[T], says: str, special: Special | None = None) -> Record[T]:
    return Record(row_reader(table, value, special or {}), says)


def _texts(value: list[Any]) -> list[Any]:
    if not all(isinstance(one, str) for one in value):
        raise UnreadableError("must be a list of texts")
    return value


def _texts_by_name(value: dict[str, Any]) -> dict[str, Any]:
    _texts(list(value.values()))
    return value


def _threads(value: list[Any]) -> list[Any]:
    for one in value:
        if not isinstance(one, dict) or one.keys() != {"name", "stack"}:
            raise UnreadableError("must be a list of threads with name and stack")
        _texts_by_name(one)
    return value


def _actor(default: ActorKind | None) -> tuple[Callable[[Any], Any], Any]:
    return one_of(get_args(ActorKind)), default


AUDIT = _record(
    t.audit,
    AuditEntry,
    "detail",
    {"actor_kind": _actor("service"), "outcome": (one_of(get_args(Outcome)), "done")},
)
EVENT = _record(t.events, StoredEvent, "message", {"actor_kind": _actor(None)})
LINE = _record(t.log_lines, StoredLine, "text")
CHECKPOINT = _record(t.checkpoints, StoredCheckpoint, "problem")
STACKS = _record(t.stacks, StoredStacks, "problem", {"threads": (_threads, [])})
PROFILES = _record(t.profiles, StoredProfile, "problem")
# A token whose end can't be read has ended.
TOKEN = _record(
    t.tokens,
    StoredToken,
    "problem",
    {"scopes": (_texts, []), "expires_at": (None, datetime), "revoked_at": (None, datetime)},
)
SECRET = _record(t.secrets, StoredSecret, "problem")
STUDY = _record(t.studies, Study, "problem")
CHILD = _record(t.study_children, StudyChild, "problem", {"point": (_texts_by_name, {})})
