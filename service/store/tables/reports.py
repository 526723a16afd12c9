"""Reports of workers, under the fence of an attempt. Whatever they send, the stored amount per job is bounded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from syncnorm.service.jobs.actors import WORKER
from syncnorm.service.jobs.instants import after
from syncnorm.service.jobs.job import Attempt, Job, NewEvent
from syncnorm.service.store import schema as t
from syncnorm.service.store.database import Database
from syncnorm.service.store.report_counts import delete_oldest_lines, report_counts, set_report_counts
from syncnorm.service.store.rows import PHASES, attempt_of
from syncnorm.service.store.statements import (
    ATTEMPTS,
    add_event,
    event_row,
    insert_new,
    insert_or_ignore,
    job_of_attempt,
    lock_job,
)
from syncnorm.service.store.tables.outbox import request_description
from syncnorm.trainer.contract.protocol import CheckpointFact, GuaranteesReport, LogLine, Placement, Profile, Stacks

MOST_EVENTS = 2000
"""Most events of the workers of one job."""
_MOST_CHECKPOINTS = 1000
"""Of one attempt."""
_PRUNED_AT_ONCE = 2000
_SPARE = 1 / 16
"""Share of a full log that is deleted at once, so that not every message deletes some lines."""


class ReportTable:
    """A report takes effect only while its attempt runs; log lines also for a while after."""

    def __init__(self, database: Database) -> None:
        self._db = database
        lines = t.log_lines
        insert = insert_or_ignore(lines, is_sqlite=database.is_sqlite)
        self._add_line = insert.returning(sa.func.length(lines.c.text))

    def heartbeat(self, attempt_id: str, fence: str, lease_s: float, phase: str | None, step: int | None) -> Job | None:
        """Renew the lease of an attempt; returns its job, or None if the fence is stale."""
        with self._db.write() as c:
            attempt = self._live(c, attempt_id, fence)
            if attempt is None:
                return None
            self._renew(c, attempt, lease_s, phase, step)
            return job_of_attempt(c, attempt)

    def progress(self, attempt_id: str, fence: str, lease_s: float, step: int, progress: dict[str, Any]) -> Job | None:
        with self._db.write() as c:
            attempt = self._live(c, attempt_id, fence)
            if attempt is None:
                return None
            self._renew(c, attempt, lease_s, None, step)
            c.execute(sa.update(t.jobs).where(t.jobs.c.id == attempt.job_id).values(progress=progress))
            self._replace_progress(c, attempt.job_id, NewEvent("progress", f"Step {step}.", progress, WORKER))
            return job_of_attempt(c, attempt)

    def _replace_progress(self, c: sa.Connection, job_id: str, event: NewEvent) -> None:
        """An event for followers that replaces the one before: the course of training is in MLflow."""
        before = report_counts(c, job_id).progress_seq
        if before is not None:
            c.execute(sa.delete(t.events).where(t.events.c.seq == before))
        row = event_row(job_id, self._db.now(c), event)
        seq = c.execute(sa.insert(t.events).returning(t.events.c.seq), row).scalar_one()
        set_report_counts(c, job_id, progress_seq=seq)

    def add_lines(
        self, attempt_id: str, fence: str, lines: Sequence[LogLine], most_characters: int | None = None
    ) -> Job | None:
        """Store log lines, also the last ones of an ended attempt; lines that exist already are skipped.

        most_characters: limit of one job; beyond it, its oldest lines are deleted. None: no limit.
        """
        with self._db.write() as c:
            attempt = self._fenced(c, attempt_id, fence)
            if attempt is None:
                return None
            rows = [{"job_id": attempt.job_id, "attempt": attempt.number, **vars(line)} for line in lines]
            new = list(c.execute(self._add_line, rows).scalars()) if rows else []
            if new:
                before = report_counts(c, attempt.job_id)
                count, characters = before.lines + len(new), before.characters + sum(new)
                set_report_counts(c, attempt.job_id, lines=count, characters=characters)
                if most_characters is not None and characters > most_characters:
                    share = 1 - most_characters / characters + _SPARE
                    delete_oldest_lines(c, attempt.job_id, min(math.ceil(share * count), _PRUNED_AT_ONCE))
            return None if attempt.ended_at else job_of_attempt(c, attempt)

    def placement(self, attempt_id: str, placement: Placement) -> Job | None:
        with self._db.write() as c:
            attempt = self._live(c, attempt_id, placement.fence)
            if attempt is None:
                return None
            job = job_of_attempt(c, attempt)
            most = max(attempt.workers, job.workers)
            theirs = {item.rank: item for item in placement.ranks if item.rank < most}
            ranks = [item.model_dump(mode="json") for _, item in sorted(theirs.items())]
            c.execute(sa.update(t.attempts).where(t.attempts.c.id == attempt_id).values(placement=ranks))
            return job

    def guarantees(self, attempt_id: str, report: GuaranteesReport) -> Job | None:
        with self._db.write() as c:
            attempt = self._live(c, attempt_id, report.fence)
            if attempt is None:
                return None
            found = report.guarantees.model_dump(mode="json")
            c.execute(sa.update(t.jobs).where(t.jobs.c.id == attempt.job_id).values(guarantees=found))
            request_description(c, attempt.job_id, attempt.number)
            return job_of_attempt(c, attempt)

    def add_checkpoint(self, attempt_id: str, fact: CheckpointFact) -> Job | None:
        """Store a checkpoint, and forget earlier ones that the attempt has deleted since."""
        with self._db.write() as c:
            attempt = self._live(c, attempt_id, fact.fence)
            if attempt is None:
                return None
            row = fact.model_dump(mode="json", exclude={"fence", "kept"})
            row |= {"job_id": attempt.job_id, "attempt": attempt.number}
            if insert_new(c, t.checkpoints, row | {"at": self._db.now(c)}):
                event = NewEvent("checkpoint", f"Checkpoint at step {fact.step}.", {"step": fact.step}, WORKER)
                add_event(c, attempt.job_id, self._db.now(c), event)
            k = t.checkpoints.c
            ours = (k.job_id == attempt.job_id, k.attempt == attempt.number)
            if fact.kept is not None:
                c.execute(sa.delete(t.checkpoints).where(*ours, k.step < fact.step, k.step.not_in(fact.kept)))
            newest = sa.select(k.step).where(*ours).order_by(k.step.desc()).offset(_MOST_CHECKPOINTS).limit(1)
            c.execute(sa.delete(t.checkpoints).where(*ours, k.step <= newest.scalar_subquery()))
            return job_of_attempt(c, attempt)

    def add_event(self, attempt_id: str, fence: str, event: NewEvent) -> Job | None:
        """Store an event; if a job sends too many, one that says that no more are stored."""
        with self._db.write() as c:
            attempt = self._live(c, attempt_id, fence)
            if attempt is None:
                return None
            count = report_counts(c, attempt.job_id).events
            if count == MOST_EVENTS:
                text = f"The workers of this job have sent {MOST_EVENTS} events; later ones are not stored."
                event = NewEvent("events_left_out", text)
            if count <= MOST_EVENTS:
                add_event(c, attempt.job_id, self._db.now(c), event)
                set_report_counts(c, attempt.job_id, events=count + 1)
            return job_of_attempt(c, attempt)

    def add_stacks(self, attempt_id: str, stacks: Stacks) -> Job | None:
        """Keep what the threads of a process do, in place of what they did before."""
        with self._db.write() as c:
            attempt = self._live(c, attempt_id, stacks.fence)
            if attempt is None:
                return None
            job = job_of_attempt(c, attempt)
            if stacks.rank < max(attempt.workers, job.workers):
                row = stacks.model_dump(mode="json", include={"request", "threads"})
                self._keep_latest(c, t.stacks, attempt, stacks.rank, row)
            return job

    def add_profile(self, attempt_id: str, profile: Profile) -> Job | None:
        """Keep what a rank measured, in place of what it measured before."""
        with self._db.write() as c:
            attempt = self._live(c, attempt_id, profile.fence)
            if attempt is None:
                return None
            job = job_of_attempt(c, attempt)
            if profile.rank < max(attempt.workers, job.workers):
                row = profile.model_dump(mode="json", include={"request", "answer"})
                self._keep_latest(c, t.profiles, attempt, profile.rank, row)
            return job

    def _keep_latest(self, c: sa.Connection, table: sa.Table, attempt: Attempt, rank: int, row: dict[str, Any]) -> None:
        key = {"job_id": attempt.job_id, "attempt": attempt.number, "rank": rank}
        c.execute(sa.delete(table).where(*(table.c[name] == value for name, value in key.items())))
        c.execute(sa.insert(table).values(**key, **row, at=self._db.now(c)))

    def exit(self, attempt_id: str, fence: str, result: dict[str, Any]) -> Job | None:
        """Store the result that an attempt sent; the reconciler settles the job by it."""
        with self._db.write() as c:
            attempt = self._live(c, attempt_id, fence)
            if attempt is None:
                return None
            if attempt.result is None:
                c.execute(sa.update(t.attempts).where(t.attempts.c.id == attempt_id).values(result=result))
            return job_of_attempt(c, attempt)

    def _live(self, c: sa.Connection, attempt_id: str, fence: str) -> Attempt | None:
        attempt = self._fenced(c, attempt_id, fence)
        return None if attempt is None or attempt.ended_at else attempt

    def _fenced(self, c: sa.Connection, attempt_id: str, fence: str) -> Attempt | None:
        a = t.attempts.c
        guard = (a.id == attempt_id, a.fence == fence)
        lock_job(c, t.jobs.c.id == sa.select(a.job_id).where(a.id == attempt_id).scalar_subquery())
        row = c.execute(ATTEMPTS.where(*guard)).one_or_none()
        return None if row is None else attempt_of(row)

    def _renew(self, c: sa.Connection, attempt: Attempt, lease_s: float, phase: str | None, step: int | None) -> None:
        now = self._db.now(c)
        values: dict[str, Any] = {"heartbeat_at": now, "lease_expires_at": after(now, lease_s)}
        if phase is not None and phase not in (attempt.phases or {}):
            values["phases"] = {**(attempt.phases or {}), phase: t.format_instant(now)}
            # The driver's message may arrive after a later one of rank 0.
            values["phase"] = max(values["phases"], key=PHASES.index)
        if step is not None and step > attempt.step:
            values["step"] = step
        c.execute(sa.update(t.attempts).where(t.attempts.c.id == attempt.id).values(**values))
