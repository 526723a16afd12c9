"""Many cases in one scene; where something goes wrong, the cases to blame are found by halving."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import pytest

from syncnorm.service.store.database import Database

MOST_NAMED = 4
"""Culprits that a failing test names; to find all of them would take long."""

_AT_ONCE = 80


class Named(Protocol):
    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=Named)
Faults = dict[str, list[str]]
"""By the name of the case to blame."""


def share_of(cases: Sequence[T], database: Database, share: int = 2) -> list[T]:
    """For a short form: one of so many, other ones on each database."""
    return list(cases[0 if database.is_sqlite else share // 2 :: share])


def culprits(cases: Sequence[T], check: Callable[[Sequence[T]], list[str]], most: int | None = None) -> Faults:
    """What goes wrong, and with which cases. check: of a whole group, what went wrong."""
    most = MOST_NAMED if most is None else most
    blamed: Faults = {}
    for start in range(0, len(cases), _AT_ONCE):
        if len(blamed) < most:
            blamed |= _culprits(cases[start : start + _AT_ONCE], check, most - len(blamed))
    return blamed


def _culprits(cases: Sequence[T], check: Callable[[Sequence[T]], list[str]], most: int) -> Faults:
    found = check(cases)
    if not found:
        return {}
    if len(cases) == 1:
        return {cases[0].name: found}
    half = len(cases) // 2
    blamed = _culprits(cases[:half], check, most)
    if len(blamed) < most:
        blamed |= _culprits(cases[half:], check, most - len(blamed))
    return blamed or {f"only all {len(cases)} together": found}


def must_be_none(faults: Faults) -> None:
    """The test fails with one paragraph for each case to blame."""
    if faults:
        told = (f"{name}\n    " + "\n    ".join(list(dict.fromkeys(lines))[:4]) for name, lines in faults.items())
        pytest.fail("\n".join([f"{len(faults)} to blame, first:", *told]), pytrace=False)
