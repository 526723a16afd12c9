"""Attempts as the reconciler records them. Reports of their workers are in reports.py."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from syncnorm.service.jobs.job import Attempt, Job
from syncnorm.service.store import schema as t
from syncnorm.service.store.database import Database
from syncnorm.service.store.rows import Faults, attempt_of
from syncnorm.service.store.statements import ATTEMPTS, insert_new, job_of_attempt, lease_stands


class AttemptTable:
    """Attempts and their usage."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def get(self, attempt_id: str) -> Attempt | None:
        with self._db.read() as c:
            row = c.execute(ATTEMPTS.where(t.attempts.c.id == attempt_id)).one_or_none()
        return None if row is None else attempt_of(row)

    def of_job(self, job_id: str) -> list[Attempt]:
        a = t.attempts.c
        with self._db.read() as c:
            rows = c.execute(ATTEMPTS.where(a.job_id == job_id).order_by(a.number))
            return [attempt_of(row) for row in rows]

    def unreleased(self, faults: Faults | None = None) -> list[Attempt]:
        """Attempts that may still hold capacity. faults: gets the problems of rows that can't be read."""
        with self._db.read() as c:
            rows = c.execute(ATTEMPTS.where(t.attempts.c.released_at.is_(None)))
            return [attempt_of(row, faults) for row in rows]

    def note(self, attempt_id: str, changes: Mapping[str, Any], lease: int | None = None) -> bool:
        """Record an action or observation; False if this replica no longer holds the reconciler's lease."""
        with self._db.write() as c:
            if not lease_stands(c, lease):
                return False
            c.execute(sa.update(t.attempts).where(t.attempts.c.id == attempt_id).values(**changes))
        return True

    def release(self, attempt_id: str, lease: int | None = None) -> float | None:
        """Release an ended attempt that has left the cluster: its capacity is free, and its usage is added up.

        Returns the seconds for which it held capacity; None if it was released before, or this replica no longer holds
        the lease.
        """
        a = t.attempts.c
        with self._db.write() as c:
            if not lease_stands(c, lease):
                return None
            now = self._db.now(c)
            guard = (a.id == attempt_id, a.released_at.is_(None))
            if c.execute(sa.update(t.attempts).where(*guard).values(released_at=now)).rowcount != 1:
                return None
            attempt = attempt_of(c.execute(ATTEMPTS.where(a.id == attempt_id)).one())
            job = job_of_attempt(c, attempt)
            held_s = (now - attempt.created_at).total_seconds()
            self._add_usage(c, job, attempt, held_s)
        return held_s

    def _add_usage(self, c: sa.Connection, job: Job, attempt: Attempt, held_s: float) -> None:
        u = t.usage.c
        worker_s = attempt.workers * held_s
        used = {"cpu_seconds": job.cpus_per_worker * worker_s, "gpu_seconds": job.gpus_per_worker * worker_s}
        if not insert_new(c, t.usage, {"owner": job.owner, **used}):
            more = {name: t.usage.c[name] + value for name, value in used.items()}
            c.execute(sa.update(t.usage).where(u.owner == job.owner).values(more))

    def usage(self) -> dict[str, tuple[float, float]]:
        """(CPU seconds, GPU seconds) by owner, of everything that ever held capacity, including what holds it now."""
        found: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
        a, j = t.attempts.c, t.jobs.c
        live = sa.select(j.owner, a.workers * j.cpus_per_worker, a.workers * j.gpus_per_worker, a.created_at)
        with self._db.read() as c:
            now = self._db.now(c)
            rows = [(owner, cpu_s, gpu_s) for owner, cpu_s, gpu_s in c.execute(sa.select(t.usage))]
            for owner, cpus, gpus, since in c.execute(
                live.join_from(t.attempts, t.jobs, a.job_id == j.id).where(a.released_at.is_(None))
            ):
                if isinstance(since, datetime) and isinstance(cpus, int) and isinstance(gpus, int):
                    held_s = (now - since).total_seconds()
                    rows.append((owner, cpus * held_s, gpus * held_s))
        for owner, cpu_s, gpu_s in rows:
            found[owner] = (found[owner][0] + cpu_s, found[owner][1] + gpu_s)
        return dict(found)
