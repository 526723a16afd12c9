"""Sealed secrets by owner and name. They can't be read without the key, which is not in the database."""

from __future__ import annotations

from collections.abc import Collection

import sqlalchemy as sa

from syncnorm.service.jobs.actors import SERVICE, Actor, NewAuditEntry
from syncnorm.service.store import schema as t
from syncnorm.service.store.database import Database
from syncnorm.service.store.record_rows import SECRET
from syncnorm.service.store.statements import add_audit, insert_new
from syncnorm.service.store.values import StoredSecret


class SecretTable:
    """Secrets, sealed by the caller."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def put(self, owner: str, name: str, sealed: str, by: Actor = SERVICE) -> None:
        s = t.secrets.c
        with self._db.write() as c:
            now = self._db.now(c)
            is_new = insert_new(c, t.secrets, {"owner": owner, "name": name, "sealed": sealed, "updated_at": now})
            add_audit(c, now, [NewAuditEntry(by, "secret.put", f"{owner}/{name}", after={"replaced": not is_new})])
            if not is_new:
                mine = sa.update(t.secrets).where(s.owner == owner, s.name == name)
                c.execute(mine.values(sealed=sealed, updated_at=now))

    def sealed(self, owner: str, names: Collection[str]) -> dict[str, str]:
        """Sealed values by name."""
        s = t.secrets.c
        with self._db.read() as c:
            query = sa.select(s.name, s.sealed).where(s.owner == owner, s.name.in_(names))
            return {row[0]: row[1] for row in c.execute(query)}

    def names(self, owner: str) -> set[str]:
        return {secret.name for secret in self.find(owner)}

    def find(self, owner: str) -> list[StoredSecret]:
        """By name."""
        s = t.secrets.c
        with self._db.read() as c:
            query = SECRET.query.where(s.owner == owner).order_by(s.name)
            return [SECRET.of(row) for row in c.execute(query)]

    def delete(self, owner: str, name: str, by: Actor = SERVICE) -> bool:
        """False if there is no such secret."""
        s = t.secrets.c
        with self._db.write() as c:
            deleted = c.execute(sa.delete(t.secrets).where(s.owner == owner, s.name == name)).rowcount == 1
            if deleted:
                add_audit(c, self._db.now(c), [NewAuditEntry(by, "secret.delete", f"{owner}/{name}")])
        return deleted
