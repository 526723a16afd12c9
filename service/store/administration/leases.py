"""Leases: who may act now, by the time of the database."""

from __future__ import annotations

from datetime import timedelta

import sqlalchemy as sa

from syncnorm.service.store import schema as t
from syncnorm.service.store.database import Database
from syncnorm.service.store.statements import RECONCILER, insert_new

_HELD = sa.select(t.leases.c.token, t.leases.c.expires_at).where(
    t.leases.c.name == sa.bindparam("name"), t.leases.c.holder == sa.bindparam("holder")
)


class LeaseTable:
    """Leases with a holder, an end, and a token that grows with each change of holder."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def take(self, holder: str, seconds: float, name: str = RECONCILER) -> int | None:
        """The token under which `holder` may act; None while somebody else's lease stands.

        Written down again only when half of it is over: a look each tick must not be a write each tick.
        """
        with self._db.read() as c:
            held = c.execute(_HELD, {"name": name, "holder": holder}).first()
            now = self._db.now(c)
        if held is not None and now + timedelta(seconds=seconds / 2) < held.expires_at <= now + timedelta(
            seconds=seconds
        ):
            return int(held.token)
        with self._db.write() as c:
            now = self._db.now(c)
            expires_at = now + timedelta(seconds=seconds)
            first = {"name": name, "holder": holder, "token": 1, "expires_at": expires_at}
            if insert_new(c, t.leases, first):
                return 1
            l = t.leases.c  # noqa: E741
            row = c.execute(sa.select(t.leases).where(l.name == name).with_for_update()).mappings().one()
            # A lease with more left than it is given for is from before the clock was set back.
            if row["holder"] != holder and now < row["expires_at"] <= expires_at:
                return None
            token: int = row["token"] if row["holder"] == holder else row["token"] + 1
            values = {"holder": holder, "token": token, "expires_at": expires_at}
            c.execute(sa.update(t.leases).where(l.name == name).values(**values))
            return token

    def renew(self, holder: str, token: int, seconds: float, name: str = RECONCILER) -> bool:
        """Hold a lease for longer; False if somebody else has taken it since."""
        l = t.leases.c  # noqa: E741
        with self._db.write() as c:
            mine = (l.name == name, l.holder == holder, l.token == token)
            expires_at = self._db.now(c) + timedelta(seconds=seconds)
            return c.execute(sa.update(t.leases).where(*mine).values(expires_at=expires_at)).rowcount == 1

    def give_back(self, holder: str, name: str = RECONCILER) -> None:
        with self._db.write() as c:
            l = t.leases.c  # noqa: E741
            c.execute(sa.update(t.leases).where(l.name == name, l.holder == holder).values(expires_at=self._db.now(c)))
