"""Isolates failures of one item from the others: recorded while the tick continues, and given up in the end.

An item is a job, an attempt to release, an export, a start, …: whatever a tick handles one of several of.
"""

from __future__ import annotations

import logging
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypeVar

import sqlalchemy as sa
from pydantic import ValidationError

from syncnorm.service.backend_errors import DatabaseUnavailableError
from syncnorm.service.jobs.instants import after
from syncnorm.trainer.contract.text import storable

logger = logging.getLogger(__name__)
T = TypeVar("T")

Kind = Literal["job", "row", "plan", "start", "preempt", "grow", "run_status", "export", "release", "removal"]
GiveUp = Callable[[str, str], None]
"""Ends an item for good. Gets a sentence and the traceback."""

GIVE_UP_TICKS = 3
GIVE_UP_S = 5.0
"""An item is given up after so many failed ticks in a row over so long, or after three times as many."""
_BETWEEN_S = 60.0
"""Pause between two items that are given up while all items of their kind fail: then the fault may not be theirs."""
_REST_S, _LONGEST_REST_S = 60.0, 600.0
"""How long an item is skipped if it fails and can't be given up."""
_LONGEST_TEXT = 500


@dataclass
class Streak:
    """Failures of one item in consecutive ticks. why: the latest error."""

    since: datetime
    ticks: int = 0
    why: str = ""
    rests_until: datetime | None = None
    rest_s: float = _REST_S


class Isolation:
    """Used by the thread of the reconciler; counts are read by others."""

    def __init__(self, now: Callable[[], datetime], can_write: Callable[[], bool]) -> None:
        """can_write: checks the database, to tell its outage, which affects all items, from a fault of one item."""
        self._now = now
        self._can_write = can_write
        self._streaks: dict[tuple[Kind, str], Streak] = {}
        self._touched: set[tuple[Kind, str]] = set()
        self._tick = 0
        self._worked_in: dict[Kind, int] = {}
        self._gave_up_at: dict[Kind, datetime] = {}
        self.failures: Counter[Kind] = Counter()
        self.given_up: Counter[Kind] = Counter()

    def begin_tick(self) -> None:
        self._tick += 1
        self._touched = set()

    def end_tick(self) -> None:
        """Forget items that no longer exist."""
        for key in self._streaks.keys() - self._touched:
            del self._streaks[key]

    def attempt(self, kind: Kind, name: str, act: Callable[[], T], give_up: GiveUp | None = None) -> T | None:
        """The result of `act`; None if it raised, or is skipped because it raised too often."""
        key = kind, name
        self._touched.add(key)
        if self.is_resting(kind, name):
            return None
        streak = self._streaks.get(key)
        try:
            result = act()
        except Exception as error:
            self._failed(key, error, give_up)
            return None
        self._worked_in[kind] = self._tick
        if streak is not None:
            self._streaks.pop(key, None)
            logger.info(
                "item recovered after failed ticks", extra={"kind": kind, "item": name, "failed_ticks": streak.ticks}
            )
        return result

    def fail(self, kind: Kind, name: str, error: Exception, give_up: GiveUp | None = None) -> None:
        """Record a failure that was caught elsewhere."""
        self._touched.add((kind, name))
        self._failed((kind, name), error, give_up)

    def is_resting(self, kind: Kind, name: str) -> bool:
        """Whether it is skipped for a while because it failed so often."""
        self._touched.add((kind, name))
        streak = self._streaks.get((kind, name))
        return streak is not None and streak.rests_until is not None and self._now() < streak.rests_until

    def worked(self, kind: Kind) -> None:
        """Note that other items of this kind were handled successfully."""
        self._worked_in[kind] = self._tick

    def problem(self, name: str) -> str | None:
        """The error of the job or attempt of this name."""
        return next((streak.why for (_, item), streak in self.failing() if item == name), None)

    def failing(self) -> list[tuple[tuple[Kind, str], Streak]]:
        """Items that failed when they were last handled."""
        return list(self._streaks.items())

    def _failed(self, key: tuple[Kind, str], error: Exception, give_up: GiveUp | None) -> None:
        kind, name = key
        if _is_of_the_database(error) and not self._can_write():
            raise error
        now = self._now()
        streak = self._streaks.setdefault(key, Streak(now))
        streak.ticks += 1
        streak.why = describe(error)
        self.failures[kind] += 1
        if streak.ticks == 1:
            logger.error(
                "could not handle an item; retrying on the next tick",
                extra={"kind": kind, "item": name},
                exc_info=error,
            )
        if self._is_hopeless(kind, streak, now):
            self._end(key, streak, error, give_up)

    def _is_hopeless(self, kind: Kind, streak: Streak, now: datetime) -> bool:
        if streak.ticks < GIVE_UP_TICKS:
            return False
        if streak.ticks < 3 * GIVE_UP_TICKS and (now - streak.since).total_seconds() < GIVE_UP_S:
            return False
        others_work = self._worked_in.get(kind, -1) >= self._tick - 1
        last = self._gave_up_at.get(kind)
        return others_work or last is None or not now < after(last, _BETWEEN_S)

    def _end(self, key: tuple[Kind, str], streak: Streak, error: Exception, give_up: GiveUp | None) -> None:
        kind, name = key
        if give_up is None:
            self._rest(streak)
            return
        why = f"The service could not handle this {streak.ticks} times in a row: {streak.why}"
        try:
            give_up(why, trace(error))
        except Exception:
            logger.exception("could not mark an item as failed; retrying later", extra={"kind": kind, "item": name})
            self._rest(streak)
            return
        del self._streaks[key]
        self._gave_up_at[kind] = self._now()
        self.given_up[kind] += 1
        logger.error(
            "gave up on an item after repeated failures", extra={"kind": kind, "item": name, "why": streak.why}
        )

    def _rest(self, streak: Streak) -> None:
        streak.rests_until = after(self._now(), streak.rest_s)
        streak.rest_s = min(2 * streak.rest_s, _LONGEST_REST_S)


def _is_of_the_database(error: Exception) -> bool:
    kinds = (DatabaseUnavailableError, sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError)
    return isinstance(error, kinds)


def describe(error: Exception) -> str:
    """The error in one line, without values: a spec or a statement may hold private ones."""
    if isinstance(error, ValidationError):
        found = [f"{'/'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors(include_input=False)]
        said = "; ".join(found)
    elif isinstance(error, sa.exc.DBAPIError):
        said = str(error.orig)
    else:
        said = str(error)
    return storable(f"{type(error).__name__}: {' '.join(said.split())}", _LONGEST_TEXT)


def trace(error: Exception) -> str:
    """The traceback, ending with the line of `describe`."""
    lines = ["Traceback (most recent call last):\n", *traceback.format_tb(error.__traceback__), describe(error)]
    return "".join(lines)
