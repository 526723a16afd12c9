"""Tokens, of which only the digest is kept."""

from __future__ import annotations

import sqlalchemy as sa

from syncnorm.service.jobs.actors import SERVICE, Actor, NewAuditEntry
from syncnorm.service.store import schema as t
from syncnorm.service.store.database import Database
from syncnorm.service.store.record_rows import TOKEN
from syncnorm.service.store.statements import add_audit, columns
from syncnorm.service.store.values import StoredToken


class TokenTable:
    """Tokens of users."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def add(self, token: StoredToken, by: Actor = SERVICE) -> None:
        expires_at = token.expires_at.isoformat() if token.expires_at else None
        after = {"owner": token.owner, "scopes": token.scopes, "expires_at": expires_at}
        with self._db.write() as c:
            c.execute(sa.insert(t.tokens).values(**columns(t.tokens, token)))
            add_audit(c, self._db.now(c), [NewAuditEntry(by, "token.create", token.id, after=after)])

    def get(self, token_id: str) -> StoredToken | None:
        with self._db.read() as c:
            row = c.execute(TOKEN.query.where(t.tokens.c.id == token_id)).one_or_none()
        return None if row is None else TOKEN.of(row)

    def all(self) -> list[StoredToken]:
        """Oldest first."""
        with self._db.read() as c:
            rows = c.execute(TOKEN.query.order_by(t.tokens.c.created_at, t.tokens.c.id))
            return [TOKEN.of(row) for row in rows]

    def revoke(self, token_id: str, by: Actor = SERVICE) -> bool:
        """False if there is no such token, or it was revoked before."""
        k = t.tokens.c
        with self._db.write() as c:
            now = self._db.now(c)
            revoke = sa.update(t.tokens).where(k.id == token_id, k.revoked_at.is_(None)).returning(k.owner)
            owner = c.execute(revoke.values(revoked_at=now)).scalar_one_or_none()
            if owner is not None:
                add_audit(c, now, [NewAuditEntry(by, "token.revoke", token_id, before={"owner": owner})])
        return owner is not None
