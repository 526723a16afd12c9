"""The id of this installation, the storages it has marked, and whether the database can be written to now."""

from __future__ import annotations

import secrets

import sqlalchemy as sa

from syncnorm.service.backend_errors import DatabaseUnavailableError
from syncnorm.service.store import schema as t
from syncnorm.service.store.database import Database
from syncnorm.service.store.statements import insert_new

_ITSELF = ""
"""Stands for a root in the row that names the installation."""
_ROOT = 400
_FILLER = "x" * 16_384
"""More than a page of either database: a small update in place would succeed on a full disk."""


class InstallationTable:
    """Facts about the whole installation."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def id(self) -> str:
        """Its id, made at the first call and the same for every replica."""
        s = t.storages.c
        with self._db.write() as c:
            row = {"root": _ITSELF, "installation": f"inst_{secrets.token_hex(8)}", "marked_at": self._db.now(c)}
            insert_new(c, t.storages, row)
            return str(c.execute(sa.select(s.installation).where(s.root == _ITSELF)).scalar_one())

    def note_storage(self, root: str) -> None:
        """Record that the storage has our marker."""
        installation = self.id()
        with self._db.write() as c:
            row = {"root": root[:_ROOT], "installation": installation, "marked_at": self._db.now(c)}
            insert_new(c, t.storages, row)

    def has_storage(self, root: str) -> bool:
        return self._any(t.storages.c.root == root[:_ROOT])

    def has_other_storage(self, root: str) -> bool:
        return self._any(t.storages.c.root.not_in([_ITSELF, root[:_ROOT]]))

    def has_attempts(self) -> bool:
        """Whether anything was ever launched, as far as is still known."""
        with self._db.read() as c:
            return c.execute(sa.select(t.attempts.c.id).limit(1)).first() is not None

    def can_write(self) -> bool:
        """Whether the database accepts new rows now: not full, locked, read-only or unreachable."""
        name = secrets.token_hex(8)
        try:
            with self._db.try_write() as c:
                c.execute(sa.insert(t.probe).values(id=name, filler=_FILLER))
            with self._db.try_write() as c:
                c.execute(sa.delete(t.probe))
        except (sa.exc.SQLAlchemyError, DatabaseUnavailableError):
            return False
        return True

    def _any(self, which: sa.ColumnElement[bool]) -> bool:
        with self._db.read() as c:
            return c.execute(sa.select(t.storages.c.root).where(which).limit(1)).first() is not None
