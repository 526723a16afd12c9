"""Attempts: what the reconciler notes, and what workers report under the fence of an attempt."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, get_args

import sqlalchemy as sa

from service import schema as t
from service.jobs import Attempt, Job, NewEvent
from service.store.base import ATTEMPTS, JOBS, Tables, attempt_of, job_of
from trainer.attempt import CheckpointFact, LogLine, Phase, Placement

_PHASES: tuple[Phase, ...] = get_args(Phase)
"""In the order in which an attempt goes through them."""


class AttemptTable(Tables):
    """Attempts, with the log lines and checkpoints they send."""

    def attempt(self, attempt_id: str) -> Attempt | None:
        with self._db.read() as c:
            row = c.execute(ATTEMPTS.where(t.attempts.c.id == attempt_id)).one_or_none()
        return None if row is None else attempt_of(row)

    def attempts(self, job_id: str) -> list[Attempt]:
        a = t.attempts.c
        with self._db.read() as c:
            rows = c.execute(ATTEMPTS.where(a.job_id == job_id).order_by(a.number))
            return [attempt_of(row) for row in rows]

    def unreleased_attempts(self) -> list[Attempt]:
        """Attempts that may still take up room on the cluster."""
        with self._db.read() as c:
            rows = c.execute(ATTEMPTS.where(t.attempts.c.released_at.is_(None)))
            return [attempt_of(row) for row in rows]

    def note_attempt(self, attempt_id: str, changes: Mapping[str, Any], lease: int | None = None) -> bool:
        """Record what was done or seen; False if the reconciler's lease no longer stands."""
        with self._db.write() as c:
            if lease is not None and not self._lease_stands(c, lease):
                return False
            c.execute(sa.update(t.attempts).where(t.attempts.c.id == attempt_id).values(**changes))
        return True

    def release(self, attempt_id: str, lease: int | None = None) -> float | None:
        """An ended attempt has left the cluster: its room is free, and what it used is added up.

        Seconds for which it held its room; None if it was released before or the reconciler's lease no longer stands.
        """
        a = t.attempts.c
        with self._db.write() as c:
            if lease is not None and not self._lease_stands(c, lease):
                return None
            now = self._now(c)
            guard = (a.id == attempt_id, a.released_at.is_(None))
            if c.execute(sa.update(t.attempts).where(*guard).values(released_at=now)).rowcount != 1:
                return None
            attempt = attempt_of(c.execute(ATTEMPTS.where(a.id == attempt_id)).one())
            job = self._job_of(c, attempt)
            held_s = (now - attempt.created_at).total_seconds()
            self._add_usage(c, job, attempt, held_s)
        return held_s

    def _add_usage(self, c: sa.Connection, job: Job, attempt: Attempt, held_s: float) -> None:
        u = t.usage.c
        worker_s = attempt.workers * held_s
        used = {"cpu_seconds": job.cpus_per_worker * worker_s, "gpu_seconds": job.gpus_per_worker * worker_s}
        if not self._insert_new(c, t.usage, {"owner": job.owner, **used}):
            more = {name: t.usage.c[name] + value for name, value in used.items()}
            c.execute(sa.update(t.usage).where(u.owner == job.owner).values(more))

    def usage(self) -> dict[str, tuple[float, float]]:
        """(CPU seconds, GPU seconds) by owner, of everything that was ever given room, what holds it now included."""
        found: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
        a, j = t.attempts.c, t.jobs.c
        live = sa.select(j.owner, a.workers * j.cpus_per_worker, a.workers * j.gpus_per_worker, a.created_at)
        with self._db.read() as c:
            now = self._now(c)
            rows = [(owner, cpu_s, gpu_s) for owner, cpu_s, gpu_s in c.execute(sa.select(t.usage))]
            for owner, cpus, gpus, since in c.execute(
                live.join_from(t.attempts, t.jobs, a.job_id == j.id).where(a.released_at.is_(None))
            ):
                held_s = (now - since).total_seconds()
                rows.append((owner, cpus * held_s, gpus * held_s))
        for owner, cpu_s, gpu_s in rows:
            found[owner] = (found[owner][0] + cpu_s, found[owner][1] + gpu_s)
        return dict(found)

    # What workers report; each takes effect only under the fence of an attempt that is still under way.

    def heard(self, attempt_id: str, fence: str, lease_s: float, phase: str | None, step: int | None) -> Job | None:
        """Renew the lease of an attempt. Its job; None if the fence is stale."""
        with self._db.write() as c:
            attempt = self._live(c, attempt_id, fence)
            if attempt is None:
                return None
            self._renew(c, attempt, lease_s, phase, step)
            return self._job_of(c, attempt)

    def progress(self, attempt_id: str, fence: str, lease_s: float, step: int, progress: dict[str, Any]) -> Job | None:
        with self._db.write() as c:
            attempt = self._live(c, attempt_id, fence)
            if attempt is None:
                return None
            self._renew(c, attempt, lease_s, None, step)
            c.execute(sa.update(t.jobs).where(t.jobs.c.id == attempt.job_id).values(progress=progress))
            self._add_event(c, attempt.job_id, NewEvent("progress", f"Step {step}.", progress))
            return self._job_of(c, attempt)

    def add_lines(self, attempt_id: str, fence: str, lines: Sequence[LogLine]) -> Job | None:
        """Keep log lines, the last words of an ended attempt included; those that are there already are left alone."""
        with self._db.write() as c:
            attempt = self._fenced(c, attempt_id, fence)
            if attempt is None:
                return None
            for line in lines:
                row = {"job_id": attempt.job_id, "attempt": attempt.number, **line.model_dump()}
                self._insert_new(c, t.log_lines, row)
            return None if attempt.ended_at else self._job_of(c, attempt)

    def placed(self, attempt_id: str, placement: Placement) -> Job | None:
        with self._db.write() as c:
            attempt = self._live(c, attempt_id, placement.fence)
            if attempt is None:
                return None
            ranks = placement.model_dump(mode="json")["ranks"]
            c.execute(sa.update(t.attempts).where(t.attempts.c.id == attempt_id).values(placement=ranks))
            return self._job_of(c, attempt)

    def add_checkpoint(self, attempt_id: str, fact: CheckpointFact) -> Job | None:
        """Keep a checkpoint, and forget those before it that the attempt has deleted since."""
        with self._db.write() as c:
            attempt = self._live(c, attempt_id, fact.fence)
            if attempt is None:
                return None
            row = fact.model_dump(exclude={"fence", "kept"}) | {"job_id": attempt.job_id, "attempt": attempt.number}
            if self._insert_new(c, t.checkpoints, row | {"at": self._now(c)}):
                event = NewEvent("checkpoint", f"Checkpoint at step {fact.step}.", {"step": fact.step})
                self._add_event(c, attempt.job_id, event)
            if fact.kept is not None:
                k = t.checkpoints.c
                gone = (k.step < fact.step, k.step.not_in(fact.kept))
                c.execute(
                    sa.delete(t.checkpoints).where(k.job_id == attempt.job_id, k.attempt == attempt.number, *gone)
                )
            return self._job_of(c, attempt)

    def add_worker_event(self, attempt_id: str, fence: str, event: NewEvent) -> Job | None:
        with self._db.write() as c:
            attempt = self._live(c, attempt_id, fence)
            if attempt is None:
                return None
            self._add_event(c, attempt.job_id, event)
            return self._job_of(c, attempt)

    def exited(self, attempt_id: str, fence: str, result: dict[str, Any]) -> Job | None:
        """Keep the result an attempt sent; the reconciler settles the job by it."""
        with self._db.write() as c:
            attempt = self._live(c, attempt_id, fence)
            if attempt is None:
                return None
            if attempt.result is None:
                c.execute(sa.update(t.attempts).where(t.attempts.c.id == attempt_id).values(result=result))
            return self._job_of(c, attempt)

    def _live(self, c: sa.Connection, attempt_id: str, fence: str) -> Attempt | None:
        attempt = self._fenced(c, attempt_id, fence)
        return None if attempt is None or attempt.ended_at else attempt

    def _fenced(self, c: sa.Connection, attempt_id: str, fence: str) -> Attempt | None:
        a = t.attempts.c
        guard = (a.id == attempt_id, a.fence == fence)
        self._lock_job(c, t.jobs.c.id == sa.select(a.job_id).where(a.id == attempt_id).scalar_subquery())
        row = c.execute(ATTEMPTS.where(*guard)).one_or_none()
        return None if row is None else attempt_of(row)

    def _renew(self, c: sa.Connection, attempt: Attempt, lease_s: float, phase: str | None, step: int | None) -> None:
        now = self._now(c)
        values: dict[str, Any] = {"heartbeat_at": now, "lease_expires_at": now + timedelta(seconds=lease_s)}
        if phase is not None and phase not in (attempt.phases or {}):
            values["phases"] = {**(attempt.phases or {}), phase: t.format_instant(now)}
            # The driver's word may come after what rank 0 said later.
            values["phase"] = max(values["phases"], key=_PHASES.index)
        if step is not None and step > attempt.step:
            values["step"] = step
        c.execute(sa.update(t.attempts).where(t.attempts.c.id == attempt.id).values(**values))

    def _job_of(self, c: sa.Connection, attempt: Attempt) -> Job:
        return job_of(c.execute(JOBS.where(t.jobs.c.id == attempt.job_id)).one())
