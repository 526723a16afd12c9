"""Sealed secrets by owner and name. What is here can't be read without the key, which is not."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

import sqlalchemy as sa

from syncnorm.service.jobs.actors import SERVICE, Actor, Deed
from syncnorm.service.store import schema as t
from syncnorm.service.store.base import Tables


class SecretTable(Tables):
    """Secrets, sealed before they come here."""

    def put_secret(self, owner: str, name: str, sealed: str, by: Actor = SERVICE) -> None:
        s = t.secrets.c
        with self._db.write() as c:
            now = self._now(c)
            is_new = self._insert_new(c, t.secrets, {"owner": owner, "name": name, "sealed": sealed, "updated_at": now})
            self._audit(c, [Deed(by, "secret.put", f"{owner}/{name}", after={"replaced": not is_new})])
            if not is_new:
                mine = sa.update(t.secrets).where(s.owner == owner, s.name == name)
                c.execute(mine.values(sealed=sealed, updated_at=now))

    def secrets(self, owner: str, names: Collection[str]) -> dict[str, str]:
        """Sealed values by name."""
        s = t.secrets.c
        with self._db.read() as c:
            query = sa.select(s.name, s.sealed).where(s.owner == owner, s.name.in_(names))
            return {row[0]: row[1] for row in c.execute(query)}

    def secret_names(self, owner: str) -> set[str]:
        return {name for name, _ in self.list_secrets(owner)}

    def list_secrets(self, owner: str) -> list[tuple[str, datetime]]:
        """(name, last change), by name."""
        s = t.secrets.c
        with self._db.read() as c:
            query = sa.select(s.name, s.updated_at).where(s.owner == owner).order_by(s.name)
            return [(row[0], row[1]) for row in c.execute(query)]

    def delete_secret(self, owner: str, name: str, by: Actor = SERVICE) -> bool:
        """False if there is no such secret."""
        s = t.secrets.c
        with self._db.write() as c:
            deleted = c.execute(sa.delete(t.secrets).where(s.owner == owner, s.name == name)).rowcount == 1
            if deleted:
                self._audit(c, [Deed(by, "secret.delete", f"{owner}/{name}")])
        return deleted
