"""Jobs in the database. Every change is a guarded update together with its event, in one transaction."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from syncnorm.service.jobs.actions import Verb, apply_verb, differences
from syncnorm.service.jobs.actors import SERVICE, Actor, NewAuditEntry
from syncnorm.service.jobs.job import ARROWS, TERMINAL, Attempt, Job, JobState, NewEvent
from syncnorm.service.store import rows
from syncnorm.service.store import schema as t
from syncnorm.service.store.database import Database
from syncnorm.service.store.job_query import select_jobs
from syncnorm.service.store.rows import job_of, listed_of, without_eta
from syncnorm.service.store.statements import INSERT_EVENT, JOBS, add_audit, add_event, event_row, lease_stands, row_of
from syncnorm.service.store.tables.idempotency import IdempotencyTable
from syncnorm.service.store.tables.outbox import request_description
from syncnorm.service.store.values import AddOutcome, JobQuery, ListedJob, NewJob, StoredResponse, VerbResult
from syncnorm.trainer.contract.spec import InitFrom


class JobTable:
    """Jobs and their labels."""

    def __init__(self, database: Database, idempotency: IdempotencyTable) -> None:
        self._db = database
        self._idempotency = idempotency

    def add(self, job: Job, event: NewEvent) -> None:
        """Store a job with its first event."""
        self.add_all([NewJob(job, event)])

    def add_all(self, new: Sequence[NewJob], most_unfinished: int | None = None) -> list[StoredResponse | AddOutcome]:
        """Store jobs in one transaction. For each: stored, too many, or the earlier answer under its key.

        most_unfinished: limit for each owner, including the jobs that are stored here; None: no limit.
        """
        with self._db.write() as c:
            answers = self._idempotency.take_all(c, new)
            remaining = (
                None if most_unfinished is None else self.remaining(c, {one.job.owner for one in new}, most_unfinished)
            )
            results: list[StoredResponse | AddOutcome] = []
            stored: list[NewJob] = []
            for one in new:
                owner = one.job.owner
                if before := answers.get((owner, one.key)):
                    results.append(before)
                elif remaining is not None and remaining[owner] <= 0:
                    results.append(AddOutcome.TOO_MANY)
                    self._idempotency.forget(c, owner, one.key)
                else:
                    results.append(AddOutcome.STORED)
                    stored.append(one)
                    if remaining is not None:
                        remaining[owner] -= 1
                    if one.answer is not None:
                        answers[owner, one.key] = one.answer  # the same key appears again in this batch
            self.insert(c, stored)
        return results

    def remaining(self, c: sa.Connection, owners: Collection[str], most: int) -> dict[str, int]:
        """How many more unfinished jobs each owner may have."""
        found: dict[str, int] = {row[0]: row[1] for row in c.execute(_COUNT_UNFINISHED, {"owners": list(owners)})}
        return {owner: most - found.get(owner, 0) for owner in owners}

    def insert(self, c: sa.Connection, new: Sequence[NewJob], entries: Sequence[NewAuditEntry] = ()) -> None:
        """entries: what more is told of it in the audit."""
        if not new:
            return
        now = self._db.now(c)
        c.execute(_INSERT_JOB, [row_of(one.job) for one in new])
        if labels := [
            {"job_id": one.job.id, "name": name, "value": value}
            for one in new
            for name, value in one.job.labels.items()
        ]:
            c.execute(_INSERT_LABEL, labels)
        c.execute(INSERT_EVENT, [event_row(one.job.id, now, one.event) for one in new])
        add_audit(c, now, [*entries, *(_submitted(one) for one in new if one.event.by.kind == "user")])

    def delete(self, job: Job, by: Actor = SERVICE) -> bool:
        """Delete a job with all its rows; False if it changed since it was read, or parts of it still run.

        Its files are recorded for deletion.
        """
        j, a = t.jobs.c, t.attempts.c
        with self._db.write() as c:
            busy = sa.select(a.id).where(a.job_id == job.id, a.released_at.is_(None))
            e = t.exports.c  # one that never began holds nothing, and goes with the job
            exporting = sa.select(e.job_id).where(e.job_id == job.id, e.released_at.is_(None), e.fence.is_not(None))
            if c.execute(busy.union_all(exporting)).first() is not None:
                return False
            guard = (j.id == job.id, j.version == job.version, j.state.in_(TERMINAL))
            deleted = c.execute(sa.delete(t.jobs).where(*guard)).rowcount == 1
            if deleted:
                now = self._db.now(c)
                c.execute(sa.insert(t.removals).values(job_id=job.id, deleted_at=now))
                was = {"name": job.name, "owner": job.owner, "state": job.state.value}
                add_audit(c, now, [NewAuditEntry(by, "job.delete", job.id, before=was)])
            return deleted

    def change(self, job: Job, changes: Mapping[str, Any], by: Actor = SERVICE) -> Job | None:
        """Change priority, labels or limits. limits: only those given change, while the job is queued, paused or
        failed.

        Raises: ProblemError 412 if the job changed at the same moment.
        """
        was, is_now = differences({**vars(job), "limits": job.spec.limits}, changes)
        if not is_now:
            return job
        event = NewEvent("changed", f"{_listed(is_now)} changed by {by}.", is_now, by)
        with self._db.write() as c:
            if not self._update_job(c, job, {**_columns(job, is_now), "version": job.version + 1}):
                return None
            if "labels" in is_now:
                c.execute(sa.delete(t.labels).where(t.labels.c.job_id == job.id))
                rows = [{"job_id": job.id, "name": k, "value": v} for k, v in is_now["labels"].items()]
                if rows:
                    c.execute(_INSERT_LABEL, rows)
            add_event(c, job.id, self._db.now(c), event)
            add_audit(c, self._db.now(c), [NewAuditEntry(by, "job.change", job.id, was, is_now)])
            return job_of(c.execute(JOBS.where(t.jobs.c.id == job.id)).one())

    def apply(
        self, ids: Collection[str], verb: Verb, now: datetime, by: Actor = SERVICE, owner: str | None = None
    ) -> dict[str, VerbResult]:
        """Apply a verb to jobs where their state allows it, in one transaction; the outcome for each existing job, by
        id.

        owner: jobs of other owners are treated as missing; None: of any owner.
        """
        with self._db.write() as c:
            # In the order of ids, so that two transactions that lock the same jobs can't deadlock.
            theirs = JOBS.where(t.jobs.c.id.in_(sorted(ids))).order_by(t.jobs.c.id)
            jobs = [job_of(row) for row in c.execute(theirs.with_for_update()).all()]
            return {job.id: self.apply_one(c, job, verb, now, by) for job in jobs if owner in (None, job.owner)}

    def apply_one(self, c: sa.Connection, job: Job, verb: Verb, now: datetime, by: Actor) -> VerbResult:
        try:
            change = apply_verb(job, verb, now, by)
        except ValueError:
            return VerbResult(job, "refused")
        if change is None:
            return VerbResult(job, "unchanged")
        values = {"state": change.to, **change.changes}
        c.execute(sa.update(t.jobs).where(t.jobs.c.id == job.id).values(**values, version=job.version + 1))
        data = None if change.to is job.state else {"from": job.state.value}
        add_event(c, job.id, self._db.now(c), replace(change.event, data=data))
        was, is_now = differences(vars(job), {name: values[name] for name in ("state", "stop") if name in values})
        add_audit(c, self._db.now(c), [NewAuditEntry(by, f"job.{verb}", job.id, was, is_now)])
        return VerbResult(job_of(c.execute(JOBS.where(t.jobs.c.id == job.id)).one()), "done")

    def count_by_state(self, owner: str | None = None) -> dict[JobState, int]:
        """owner: counts their jobs alone."""
        query = sa.select(t.jobs.c.state, sa.func.count()).group_by(t.jobs.c.state)
        if owner is not None:
            query = query.where(t.jobs.c.owner == owner)
        with self._db.read() as c:
            found: dict[str, int] = {row[0]: row[1] for row in c.execute(query)}
        return {state: found.get(state, 0) for state in JobState}

    def longest_wait_s(self) -> float:
        """Seconds that the oldest queued job has waited; 0 if none is queued."""
        query = sa.select(sa.func.min(t.jobs.c.queued_at)).where(t.jobs.c.state == JobState.QUEUED)
        with self._db.read() as c:
            oldest, now = c.execute(query).scalar_one(), self._db.now(c)
        # A time that can't be read comes as text.
        return max(0.0, (now - oldest).total_seconds()) if isinstance(oldest, datetime) else 0.0

    def get(self, job_id: str) -> Job | None:
        with self._db.read() as c:
            row = c.execute(JOBS.where(t.jobs.c.id == job_id)).one_or_none()
        return None if row is None else job_of(row)

    def is_over(self, job_id: str) -> bool:
        """Whether the job has ended, or is not there. Costs less than `get`."""
        with self._db.read() as c:
            state = c.execute(sa.select(t.jobs.c.state).where(t.jobs.c.id == job_id)).scalar()
        return state is None or state in TERMINAL

    def to_start_from(self, job_id: str) -> list[str]:
        """Ids of jobs that have yet to read the weights of this one, which model.init_from names."""
        j = t.jobs.c
        named = sa.cast(j.spec, sa.Text).contains(job_id, autoescape=True)
        never_ran = sa.or_(
            sa.and_(j.state.in_((JobState.QUEUED, JobState.PAUSED)), j.attempt == 0),
            sa.and_(j.state == JobState.STARTING, j.attempt == 1),
        )
        with self._db.read() as c:
            found = [job_of(row) for row in c.execute(JOBS.where(never_ran, named).order_by(j.id))]
        return [job.id for job in found if (how := _init_from(job)) is not None and how.job == job_id]

    def find(self, query: JobQuery) -> list[ListedJob]:
        with self._db.read() as c:
            return [self._listed(c, row) for row in c.execute(select_jobs(query)).all()]

    def _listed(self, c: sa.Connection, row: sa.Row[Any]) -> ListedJob:
        try:
            return rows.LISTED.read(row)
        except Exception:  # of any kind: the others of the list are fine
            job = job_of(c.execute(JOBS.where(t.jobs.c.id == row.id)).one())
            return listed_of(job, full=row.spec is not None)

    def find_ids(self, query: JobQuery) -> list[str]:
        """Ids of the jobs that the list would show."""
        with self._db.read() as c:
            return list(c.execute(select_jobs(query).with_only_columns(t.jobs.c.id)).scalars())

    def move(
        self,
        job: Job,
        to: JobState,
        changes: Mapping[str, Any] | None = None,
        *,
        event: NewEvent,
        also: Sequence[NewEvent] = (),
        attempt_changes: Mapping[str, Any] | None = None,
        new_attempt: Attempt | None = None,
        lease: int | None = None,
    ) -> Job | None:
        """Change the state of a job if it has not changed since it was read; None: another process was faster, and
        nothing changed.

        also: further events. lease: token of the reconciler's lease, which must still be valid. Raises: ValueError for
        a move that is not in the table of arrows.
        """
        if to is not job.state and (job.state, to) not in ARROWS:
            raise ValueError(f"a job can't go from {job.state} to {to}")
        with self._db.write() as c:
            if not lease_stands(c, lease):
                return None
            values = {"state": to, "version": job.version + 1, **(changes or {})}
            if not self._update_job(c, job, values):
                return None
            if new_attempt is not None:
                c.execute(sa.insert(t.attempts).values(**row_of(new_attempt)))
                request_description(c, job.id, new_attempt.number)
            if attempt_changes:
                a = t.attempts.c
                under_way = (a.job_id == job.id, a.ended_at.is_(None))
                c.execute(sa.update(t.attempts).where(*under_way).values(**attempt_changes))
            if to is not job.state:
                event = replace(event, data={**(event.data or {}), "from": job.state.value})
            for one in (event, *also):
                add_event(c, job.id, self._db.now(c), one)
            if to in TERMINAL:
                self._clear_eta(c, job.id)
            row = c.execute(JOBS.where(t.jobs.c.id == job.id)).one()
        return job_of(row)

    def _clear_eta(self, c: sa.Connection, job_id: str) -> None:
        j = t.jobs.c
        progress = c.execute(sa.select(j.progress).where(j.id == job_id)).scalar_one()
        if isinstance(progress, dict) and progress.get("eta_s") is not None:
            c.execute(sa.update(t.jobs).where(j.id == job_id).values(progress=without_eta(progress)))

    def _update_job(self, c: sa.Connection, job: Job, values: Mapping[str, Any]) -> bool:
        j = t.jobs.c
        guard = (j.id == job.id, j.state == job.state, j.version == job.version)
        return c.execute(sa.update(t.jobs).where(*guard).values(**values)).rowcount == 1

    def note(self, job: Job, changes: Mapping[str, Any]) -> None:
        """Set bookkeeping fields that carry no version: run id and status."""
        assert set(changes) <= {"experiment_id", "run_id", "run_status"}, changes
        with self._db.write() as c:
            c.execute(sa.update(t.jobs).where(t.jobs.c.id == job.id).values(**changes))


def _init_from(job: Job) -> InitFrom | None:
    return None if job.spec.value is None else job.spec.value.model.init_from


def _submitted(one: NewJob) -> NewAuditEntry:
    job = one.job
    after = {"name": job.name, "project": job.project, "priority": job.priority, "labels": job.labels}
    study = (one.event.data or {}).get("study")
    return NewAuditEntry(one.event.by, "job.submit", job.id, after=after | ({"study": study} if study else {}))


def _listed(changes: Mapping[str, Any]) -> str:
    return " and ".join(sorted(changes)).capitalize()


def _columns(job: Job, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Limits are in the spec, and those that decisions need also in columns of their own."""
    limits = changes.get("limits")
    if limits is None:
        return dict(changes)
    own = {name: limits[name] for name in ("max_failures", "grace_s", "deadline_s")}
    rest = {name: value for name, value in changes.items() if name != "limits"}
    return rest | own | {"spec": job.spec.with_section("limits", limits).document}


_UNFINISHED = tuple(state for state in JobState if state not in TERMINAL)
_COUNT_UNFINISHED = (
    sa.select(t.jobs.c.owner, sa.func.count())
    .where(t.jobs.c.owner.in_(sa.bindparam("owners", expanding=True)), t.jobs.c.state.in_(_UNFINISHED))
    .group_by(t.jobs.c.owner)
)
_INSERT_JOB, _INSERT_LABEL = sa.insert(t.jobs), sa.insert(t.labels)
