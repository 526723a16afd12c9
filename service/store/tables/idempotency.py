"""Answers given under an Idempotency-Key, by owner and key."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from syncnorm.service.store import schema as t
from syncnorm.service.store.database import Database
from syncnorm.service.store.statements import insert_new, insert_or_ignore
from syncnorm.service.store.values import NewJob, StoredResponse


class IdempotencyTable:
    """A key is taken in the transaction that stores what it stands for."""

    def __init__(self, database: Database) -> None:
        self._db = database
        insert = insert_or_ignore(t.idempotency, is_sqlite=database.is_sqlite)
        self._take_key = insert.returning(t.idempotency.c.owner, t.idempotency.c.key)

    def answer(self, owner: str, key: str) -> StoredResponse | None:
        with self._db.read() as c:
            return self.find(c, owner, key)

    def find(self, c: sa.Connection, owner: str, key: str) -> StoredResponse | None:
        i = t.idempotency.c
        row = c.execute(sa.select(i.request_hash, i.answer).where(i.owner == owner, i.key == key)).one_or_none()
        return None if row is None else StoredResponse(*row)

    def take(
        self, c: sa.Connection, owner: str, key: str, at: datetime, answer: StoredResponse
    ) -> StoredResponse | None:
        """Keep a key with its answer; the answer that stands under it already, if the key was taken before."""
        if insert_new(c, t.idempotency, {"owner": owner, "key": key, "at": at, **vars(answer)}):
            return None
        before = self.find(c, owner, key)
        assert before is not None
        return before

    def take_all(self, c: sa.Connection, new: Sequence[NewJob]) -> dict[tuple[str, str | None], StoredResponse]:
        """Store new keys with their answers; returns the answers of keys that exist."""
        now = self._db.now(c)
        rows: dict[tuple[str, str], dict[str, Any]] = {}
        for one in new:
            if one.key is not None and one.answer is not None:
                name = (one.job.owner, one.key)
                rows.setdefault(name, {"owner": name[0], "key": name[1], "at": now, **vars(one.answer)})
        if not rows:
            return {}
        # In one order everywhere, so that two replicas never deadlock on each other's keys.
        ours = {tuple(row) for row in c.execute(self._take_key, [rows[name] for name in sorted(rows)])}
        found = {name: self.find(c, *name) for name in rows if name not in ours}
        return {name: answer for name, answer in found.items() if answer is not None}

    def forget(self, c: sa.Connection, owner: str, key: str | None) -> None:
        i = t.idempotency.c
        c.execute(sa.delete(t.idempotency).where(i.owner == owner, i.key == key))
