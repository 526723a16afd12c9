"""Leases: who may act now, by the clock of the database."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from syncnorm.service.store import schema as t
from syncnorm.service.store.database import Database
from syncnorm.service.store.statements import RECONCILER, insert_new

logger = logging.getLogger(__name__)

_HELD = sa.select(t.leases.c.token, t.leases.c.expires_at).where(
    t.leases.c.name == sa.bindparam("name"), t.leases.c.holder == sa.bindparam("holder")
)
_HIGHEST_TOKEN = 2**62
"""A lease changes hands less often than this."""


class LeaseTable:
    """Leases with a holder, an end, and a token that grows with each change of holder."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def take(self, holder: str, seconds: float, name: str = RECONCILER) -> int | None:
        """The token under which `holder` may act; None while another holder's lease is valid.

        Written down again only when half of it is over: a look each tick must not be a write each tick. A row that
        can't be read is replaced.
        """
        with self._db.read() as c:
            held = c.execute(_HELD, {"name": name, "holder": holder}).mappings().first()
            now = self._db.now(c)
        if held is not None and not _fault(held):
            left_s = (held["expires_at"] - now).total_seconds()
            if seconds / 2 < left_s <= seconds:
                return int(held["token"])
        with self._db.write() as c:
            now = self._db.now(c)
            expires_at = now + timedelta(seconds=seconds)
            first = {"name": name, "holder": holder, "token": 1, "expires_at": expires_at}
            if insert_new(c, t.leases, first):
                return 1
            l = t.leases.c  # noqa: E741
            row = c.execute(sa.select(t.leases).where(l.name == name).with_for_update()).mappings().one()
            token = _next_token(row, holder, now, expires_at)
            if token is not None:
                values = {"holder": holder, "token": token, "expires_at": expires_at}
                c.execute(sa.update(t.leases).where(l.name == name).values(**values))
            return token

    def renew(self, holder: str, token: int, seconds: float, name: str = RECONCILER) -> bool:
        """Renew a lease; False if another holder has taken it since."""
        l = t.leases.c  # noqa: E741
        with self._db.write() as c:
            mine = (l.name == name, l.holder == holder, l.token == token)
            expires_at = self._db.now(c) + timedelta(seconds=seconds)
            return c.execute(sa.update(t.leases).where(*mine).values(expires_at=expires_at)).rowcount == 1

    def give_back(self, holder: str, name: str = RECONCILER) -> None:
        with self._db.write() as c:
            l = t.leases.c  # noqa: E741
            c.execute(sa.update(t.leases).where(l.name == name, l.holder == holder).values(expires_at=self._db.now(c)))


def _next_token(row: sa.RowMapping, holder: str, now: datetime, expires_at: datetime) -> int | None:
    """The token under which `holder` takes this lease; None: somebody else's lease stands."""
    token = row["token"]
    if fault := _fault(row):
        logger.error("a lease can't be read; replacing it", extra={"lease": row["name"], "fault": fault})
        # By the time where the token is lost: no earlier holder can have the same one.
        return token + 1 if _is_token(token) else int(now.timestamp() * 1000)
    # A lease with more time left than any lease lasts is from before the clock was set back.
    if row["holder"] != holder and now < row["expires_at"] <= expires_at:
        return None
    return int(token) if row["holder"] == holder else int(token) + 1


def _fault(row: sa.RowMapping) -> str:
    """What of a lease can't be read; empty: nothing."""
    if not isinstance(row["expires_at"], datetime):
        return f"expires_at must be a time, got {str(row['expires_at'])[:60]!r}"
    return "" if _is_token(row["token"]) else f"token must be a whole number, got {str(row['token'])[:60]!r}"


def _is_token(value: Any) -> bool:
    return type(value) is int and 0 < value < _HIGHEST_TOKEN
