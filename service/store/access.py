"""Tokens, and the audit trail of who used them for what."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from service import schema as t
from service.store.base import Tables
from service.store.values import AuditEntry, StoredToken


class AccessTable(Tables):
    """Tokens and the audit trail."""

    def add_token(self, token: StoredToken) -> None:
        with self._db.write() as c:
            c.execute(sa.insert(t.tokens).values(**vars(token)))

    def token(self, token_id: str) -> StoredToken | None:
        with self._db.read() as c:
            row = c.execute(sa.select(t.tokens).where(t.tokens.c.id == token_id)).mappings().one_or_none()
        return None if row is None else StoredToken(**row)

    def tokens(self) -> list[StoredToken]:
        with self._db.read() as c:
            rows = c.execute(sa.select(t.tokens).order_by(t.tokens.c.created_at, t.tokens.c.id)).mappings()
            return [StoredToken(**row) for row in rows]

    def revoke_token(self, token_id: str) -> bool:
        """False if there is no such token, or it was revoked before."""
        k = t.tokens.c
        with self._db.write() as c:
            revoke = sa.update(t.tokens).where(k.id == token_id, k.revoked_at.is_(None))
            return c.execute(revoke.values(revoked_at=self._now(c))).rowcount == 1

    def add_audit(self, entries: Sequence[AuditEntry]) -> None:
        with self._db.write() as c:
            c.execute(sa.insert(t.audit), [vars(entry) for entry in entries])

    def audit(self, limit: int = 200) -> list[AuditEntry]:
        """The newest entries, newest first."""
        columns = [column for column in t.audit.c if column.name != "seq"]
        with self._db.read() as c:
            rows = c.execute(sa.select(*columns).order_by(t.audit.c.seq.desc()).limit(limit)).mappings()
            return [AuditEntry(**row) for row in rows]
