"""Tokens, and the audit trail of who used them for what."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from syncnorm.service.jobs.actors import SERVICE, Actor, Deed
from syncnorm.service.store import schema as t
from syncnorm.service.store.base import Tables
from syncnorm.service.store.values import AuditEntry, AuditQuery, StoredToken


class AccessTable(Tables):
    """Tokens and the audit trail."""

    def add_token(self, token: StoredToken, by: Actor = SERVICE) -> None:
        expires_at = token.expires_at.isoformat() if token.expires_at else None
        after = {"owner": token.owner, "scopes": token.scopes, "expires_at": expires_at}
        with self._db.write() as c:
            c.execute(sa.insert(t.tokens).values(**vars(token)))
            self._audit(c, [Deed(by, "token.create", token.id, after=after)])

    def token(self, token_id: str) -> StoredToken | None:
        with self._db.read() as c:
            row = c.execute(sa.select(t.tokens).where(t.tokens.c.id == token_id)).mappings().one_or_none()
        return None if row is None else StoredToken(**row)

    def tokens(self) -> list[StoredToken]:
        with self._db.read() as c:
            rows = c.execute(sa.select(t.tokens).order_by(t.tokens.c.created_at, t.tokens.c.id)).mappings()
            return [StoredToken(**row) for row in rows]

    def revoke_token(self, token_id: str, by: Actor = SERVICE) -> bool:
        """False if there is no such token, or it was revoked before."""
        k = t.tokens.c
        with self._db.write() as c:
            revoke = sa.update(t.tokens).where(k.id == token_id, k.revoked_at.is_(None)).returning(k.owner)
            owner = c.execute(revoke.values(revoked_at=self._now(c))).scalar_one_or_none()
            if owner is not None:
                self._audit(c, [Deed(by, "token.revoke", token_id, before={"owner": owner})])
        return owner is not None

    def add_audit(self, deeds: Sequence[Deed]) -> None:
        """What stands in no transaction of its own: refusals, and files that were stored."""
        with self._db.write() as c:
            self._audit(c, deeds)

    def audit(self, query: AuditQuery = AuditQuery()) -> list[AuditEntry]:  # noqa: B008
        """Newest first."""
        a = t.audit.c
        wanted = []
        if query.actor is not None:
            wanted.append(sa.or_(a.owner == query.actor, a.token_id == query.actor))
        if query.action is not None:
            wanted.append(sa.or_(a.action == query.action, a.action.startswith(f"{query.action}.", autoescape=True)))
        if query.object is not None:
            wanted.append(a.object == query.object)
        if query.since is not None:
            wanted.append(a.at >= query.since)
        if query.until is not None:
            wanted.append(a.at < query.until)
        if query.before is not None:
            wanted.append(a.seq < query.before)
        with self._db.read() as c:
            rows = c.execute(sa.select(t.audit).where(*wanted).order_by(a.seq.desc()).limit(query.limit)).mappings()
            return [AuditEntry(**row) for row in rows]
