"""All SQL of the project. Every change of a job is a guarded update together with its event, in one transaction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from service import schema as t
from service.database import Database
from service.jobs import ARROWS, RUN_STATUS, TERMINAL, Attempt, Job, JobState, NewEvent
from trainer.attempt import CheckpointFact, LogLine
from trainer.failure import FailureReason

RECONCILER = "reconciler"
"""Name of the lease under which one process at a time decides."""


@dataclass(frozen=True)
class StoredEvent:
    seq: int
    job_id: str
    at: datetime
    kind: str
    message: str
    data: dict[str, Any] | None


@dataclass(frozen=True)
class StoredLine:
    id: int
    attempt: int
    rank: int
    seq: int
    at: str
    level: str
    text: str


@dataclass(frozen=True)
class StoredCheckpoint:
    job_id: str
    attempt: int
    step: int
    epoch: int
    path: str
    digest: str
    size_bytes: int
    at: datetime


@dataclass(frozen=True)
class StoredToken:
    """digest: SHA-256 of the token; the token itself is kept nowhere."""

    id: str
    owner: str
    digest: str
    scopes: list[str]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


@dataclass(frozen=True)
class AuditEntry:
    """Who asked for which change, and what was answered."""

    at: datetime
    who: str
    method: str
    path: str
    status: int
    request_id: str


@dataclass(frozen=True)
class Answer:
    """What was answered to a request with an Idempotency-Key."""

    request_hash: str
    answer: dict[str, Any]


@dataclass(frozen=True)
class JobQuery:
    """Filters of the job list; `after` is the id behind which to go on (newest first unless ascending)."""

    state: str | None = None
    project: str | None = None
    owner: str | None = None
    norm: str | None = None
    name: str | None = None
    label: tuple[str, str] | None = None
    created_after: datetime | None = None
    ascending: bool = False
    after: str | None = None
    limit: int = 50


class Store:
    """Jobs, attempts, events, logs and checkpoints in one database."""

    def __init__(self, database: Database, clock: Callable[[], datetime] | None = None) -> None:
        """clock: for tests; None takes the time of the database."""
        self._db = database
        self._clock = clock

    def now(self) -> datetime:
        with self._db.read() as c:
            return self._now(c)

    def _now(self, c: sa.Connection) -> datetime:
        return self._clock() if self._clock else self._db.now(c)

    # Jobs

    def add_job(self, job: Job, event: NewEvent, idempotency: tuple[str, Answer] | None = None) -> Answer | None:
        """Store a job with its first event. The answer given before, if the idempotency key is taken."""
        with self._db.write() as c:
            if idempotency is not None:
                key, answer = idempotency
                row = {"owner": job.owner, "key": key, "at": self._now(c), **asdict(answer)}
                if not self._insert_new(c, t.idempotency, row):
                    return self._answer(c, job.owner, key)
            c.execute(sa.insert(t.jobs).values(**_row(job)))
            if job.labels:
                rows = [{"job_id": job.id, "name": k, "value": v} for k, v in job.labels.items()]
                c.execute(sa.insert(t.labels), rows)
            self._add_event(c, job.id, event)
        return None

    def delete_job(self, job: Job) -> bool:
        """Remove a job with everything kept of it; False if it changed since it was read, or its room is not free."""
        j, a = t.jobs.c, t.attempts.c
        with self._db.write() as c:
            busy = sa.select(a.id).where(a.job_id == job.id, a.released_at.is_(None))
            if c.execute(busy).first() is not None:
                return False
            guard = (j.id == job.id, j.version == job.version, j.state.in_(TERMINAL))
            return c.execute(sa.delete(t.jobs).where(*guard)).rowcount == 1

    def set_labels(self, job: Job, labels: Mapping[str, str], priority: int, event: NewEvent) -> Job | None:
        """Change what may change while a job lives; None if it changed since it was read."""
        with self._db.write() as c:
            values = {"labels": dict(labels), "priority": priority, "version": job.version + 1}
            if not self._update_job(c, job, values):
                return None
            c.execute(sa.delete(t.labels).where(t.labels.c.job_id == job.id))
            if labels:
                c.execute(sa.insert(t.labels), [{"job_id": job.id, "name": k, "value": v} for k, v in labels.items()])
            self._add_event(c, job.id, event)
            return _job(c.execute(sa.select(t.jobs).where(t.jobs.c.id == job.id)).mappings().one())

    def count_unfinished(self, owner: str) -> int:
        j = t.jobs.c
        query = sa.select(sa.func.count()).where(j.owner == owner, j.state.not_in(TERMINAL))
        with self._db.read() as c:
            return int(c.execute(query).scalar_one())

    def count_by_state(self) -> dict[JobState, int]:
        query = sa.select(t.jobs.c.state, sa.func.count()).group_by(t.jobs.c.state)
        with self._db.read() as c:
            found = {JobState(state): count for state, count in c.execute(query)}
        return {state: found.get(state, 0) for state in JobState}

    def answer(self, owner: str, key: str) -> Answer | None:
        with self._db.read() as c:
            return self._answer(c, owner, key)

    def _answer(self, c: sa.Connection, owner: str, key: str) -> Answer | None:
        query = sa.select(t.idempotency).where(t.idempotency.c.owner == owner, t.idempotency.c.key == key)
        row = c.execute(query).mappings().one_or_none()
        return None if row is None else Answer(row["request_hash"], row["answer"])

    def job(self, job_id: str) -> Job | None:
        with self._db.read() as c:
            row = c.execute(sa.select(t.jobs).where(t.jobs.c.id == job_id)).mappings().one_or_none()
        return None if row is None else _job(row)

    def jobs(self, query: JobQuery) -> list[Job]:
        j = t.jobs.c
        wanted = [
            column == value
            for column, value in (
                (j.state, query.state),
                (j.project, query.project),
                (j.owner, query.owner),
                (j.norm, query.norm),
                (j.name, query.name),
            )
            if value is not None
        ]
        if query.created_after is not None:
            wanted.append(j.created_at > query.created_after)
        if query.label is not None:
            named = sa.select(t.labels.c.job_id).where(
                t.labels.c.name == query.label[0], t.labels.c.value == query.label[1]
            )
            wanted.append(j.id.in_(named))
        if query.after is not None:
            wanted.append(j.id > query.after if query.ascending else j.id < query.after)
        order = j.id.asc() if query.ascending else j.id.desc()
        return self._jobs(sa.select(t.jobs).where(*wanted).order_by(order).limit(query.limit))

    def unfinished_jobs(self) -> list[Job]:
        """All that the reconciler has to look at, runs left open by finished jobs included."""
        j = t.jobs.c
        open_run = sa.and_(j.run_id.is_not(None), j.run_status.is_distinct_from(_final_run_status()))
        return self._jobs(sa.select(t.jobs).where(sa.or_(j.state.not_in(TERMINAL), open_run)))

    def queued(self) -> list[Job]:
        return self._jobs(sa.select(t.jobs).where(t.jobs.c.state == JobState.QUEUED))

    def _jobs(self, query: sa.Select[Any]) -> list[Job]:
        with self._db.read() as c:
            return [_job(row) for row in c.execute(query).mappings()]

    def move(
        self,
        job: Job,
        to: JobState,
        changes: Mapping[str, Any] | None = None,
        *,
        event: NewEvent,
        attempt_changes: Mapping[str, Any] | None = None,
        new_attempt: Attempt | None = None,
        lease: int | None = None,
    ) -> Job | None:
        """Change the state of a job, if it still is as it was read; None: somebody was faster, and nothing changed.

        lease: token of the reconciler's lease, which must still stand.
        Raises: ValueError for a move that is not in the table of arrows.
        """
        if to is not job.state and (job.state, to) not in ARROWS:
            raise ValueError(f"a job can't go from {job.state} to {to}")
        with self._db.write() as c:
            if lease is not None and not self._lease_stands(c, lease):
                return None
            values = {"state": to, "version": job.version + 1, **(changes or {})}
            if not self._update_job(c, job, values):
                return None
            if new_attempt is not None:
                c.execute(sa.insert(t.attempts).values(**_row(new_attempt)))
            if attempt_changes:
                a = t.attempts.c
                c.execute(
                    sa.update(t.attempts).where(a.job_id == job.id, a.number == job.attempt).values(**attempt_changes)
                )
            if to is not job.state:
                event = replace(event, data={**(event.data or {}), "from": job.state.value})
            self._add_event(c, job.id, event)
            row = c.execute(sa.select(t.jobs).where(t.jobs.c.id == job.id)).mappings().one()
        return _job(row)

    def _update_job(self, c: sa.Connection, job: Job, values: Mapping[str, Any]) -> bool:
        j = t.jobs.c
        guard = (j.id == job.id, j.state == job.state, j.version == job.version)
        return c.execute(sa.update(t.jobs).where(*guard).values(**values)).rowcount == 1

    def note_job(self, job: Job, changes: Mapping[str, Any]) -> None:
        """Set bookkeeping fields that carry no version: run id and status."""
        assert set(changes) <= {"experiment_id", "run_id", "run_status"}, changes
        with self._db.write() as c:
            c.execute(sa.update(t.jobs).where(t.jobs.c.id == job.id).values(**changes))

    # Attempts

    def attempt(self, attempt_id: str) -> Attempt | None:
        with self._db.read() as c:
            row = c.execute(sa.select(t.attempts).where(t.attempts.c.id == attempt_id)).mappings().one_or_none()
        return None if row is None else _attempt(row)

    def attempts(self, job_id: str) -> list[Attempt]:
        a = t.attempts.c
        with self._db.read() as c:
            rows = c.execute(sa.select(t.attempts).where(a.job_id == job_id).order_by(a.number)).mappings()
            return [_attempt(row) for row in rows]

    def unreleased_attempts(self) -> list[Attempt]:
        """Attempts that may still take up room on the cluster."""
        with self._db.read() as c:
            rows = c.execute(sa.select(t.attempts).where(t.attempts.c.released_at.is_(None))).mappings()
            return [_attempt(row) for row in rows]

    def note_attempt(self, attempt_id: str, changes: Mapping[str, Any], lease: int | None = None) -> bool:
        """Record what was done or seen; False if the reconciler's lease no longer stands."""
        with self._db.write() as c:
            if lease is not None and not self._lease_stands(c, lease):
                return False
            c.execute(sa.update(t.attempts).where(t.attempts.c.id == attempt_id).values(**changes))
        return True

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

    def add_checkpoint(self, attempt_id: str, fact: CheckpointFact) -> Job | None:
        with self._db.write() as c:
            attempt = self._live(c, attempt_id, fact.fence)
            if attempt is None:
                return None
            row = fact.model_dump(exclude={"fence"}) | {"job_id": attempt.job_id, "attempt": attempt.number}
            if self._insert_new(c, t.checkpoints, row | {"at": self._now(c)}):
                event = NewEvent("checkpoint", f"Checkpoint at step {fact.step}.", {"step": fact.step})
                self._add_event(c, attempt.job_id, event)
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
        row = c.execute(sa.select(t.attempts).where(*guard).with_for_update()).mappings().one_or_none()
        return None if row is None else _attempt(row)

    def _renew(self, c: sa.Connection, attempt: Attempt, lease_s: float, phase: str | None, step: int | None) -> None:
        now = self._now(c)
        values: dict[str, Any] = {"heartbeat_at": now, "lease_expires_at": now + timedelta(seconds=lease_s)}
        if phase is not None and phase not in (attempt.phases or {}):
            values |= {"phase": phase, "phases": {**(attempt.phases or {}), phase: t.format_instant(now)}}
        if step is not None and step > attempt.step:
            values["step"] = step
        c.execute(sa.update(t.attempts).where(t.attempts.c.id == attempt.id).values(**values))

    def _job_of(self, c: sa.Connection, attempt: Attempt) -> Job:
        return _job(c.execute(sa.select(t.jobs).where(t.jobs.c.id == attempt.job_id)).mappings().one())

    # Events, logs, checkpoints

    def add_event(self, job_id: str, event: NewEvent) -> None:
        with self._db.write() as c:
            self._add_event(c, job_id, event)

    def _add_event(self, c: sa.Connection, job_id: str, event: NewEvent) -> None:
        c.execute(sa.insert(t.events).values(job_id=job_id, at=self._now(c), **asdict(event)))

    def events(self, job_id: str, after: int = 0, limit: int = 200) -> list[StoredEvent]:
        e = t.events.c
        query = sa.select(t.events).where(e.job_id == job_id, e.seq > after).order_by(e.seq).limit(limit)
        with self._db.read() as c:
            return [StoredEvent(**row) for row in c.execute(query).mappings()]

    def lines(
        self,
        job_id: str,
        *,
        after: int = 0,
        limit: int = 200,
        tail: bool = False,
        attempt: int | None = None,
        rank: int | None = None,
        text: str | None = None,
    ) -> list[StoredLine]:
        """Log lines in order of arrival. tail: the last ones instead of the first ones."""
        l = t.log_lines.c  # noqa: E741
        wanted = [l.job_id == job_id, l.id > after]
        if attempt is not None:
            wanted.append(l.attempt == attempt)
        if rank is not None:
            wanted.append(l.rank == rank)
        if text is not None:
            wanted.append(l.text.contains(text, autoescape=True))
        columns = [l.id, l.attempt, l.rank, l.seq, l.at, l.level, l.text]
        query = sa.select(*columns).where(*wanted).order_by(l.id.desc() if tail else l.id).limit(limit)
        with self._db.read() as c:
            found = [StoredLine(**row) for row in c.execute(query).mappings()]
        return found[::-1] if tail else found

    def checkpoints(self, job_id: str) -> list[StoredCheckpoint]:
        k = t.checkpoints.c
        query = sa.select(t.checkpoints).where(k.job_id == job_id).order_by(k.step.desc(), k.attempt.desc())
        with self._db.read() as c:
            return [StoredCheckpoint(**row) for row in c.execute(query).mappings()]

    # Tokens and audit

    def add_token(self, token: StoredToken) -> None:
        with self._db.write() as c:
            c.execute(sa.insert(t.tokens).values(**asdict(token)))

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
            c.execute(sa.insert(t.audit), [asdict(entry) for entry in entries])

    def audit(self, limit: int = 200) -> list[AuditEntry]:
        """The newest entries, newest first."""
        columns = [column for column in t.audit.c if column.name != "seq"]
        with self._db.read() as c:
            rows = c.execute(sa.select(*columns).order_by(t.audit.c.seq.desc()).limit(limit)).mappings()
            return [AuditEntry(**row) for row in rows]

    # Leases

    def take_lease(self, holder: str, seconds: float, name: str = RECONCILER) -> int | None:
        """The token under which `holder` may act; None while somebody else's lease stands."""
        with self._db.write() as c:
            now = self._now(c)
            expires_at = now + timedelta(seconds=seconds)
            first = {"name": name, "holder": holder, "token": 1, "expires_at": expires_at}
            if self._insert_new(c, t.leases, first):
                return 1
            l = t.leases.c  # noqa: E741
            row = c.execute(sa.select(t.leases).where(l.name == name).with_for_update()).mappings().one()
            if row["holder"] != holder and row["expires_at"] > now:
                return None
            token: int = row["token"] if row["holder"] == holder else row["token"] + 1
            values = {"holder": holder, "token": token, "expires_at": expires_at}
            c.execute(sa.update(t.leases).where(l.name == name).values(**values))
            return token

    def give_lease_back(self, holder: str, name: str = RECONCILER) -> None:
        with self._db.write() as c:
            l = t.leases.c  # noqa: E741
            c.execute(sa.update(t.leases).where(l.name == name, l.holder == holder).values(expires_at=self._now(c)))

    def _lease_stands(self, c: sa.Connection, token: int) -> bool:
        return (
            c.execute(
                sa.select(t.leases.c.token).where(t.leases.c.name == RECONCILER, t.leases.c.token == token)
            ).first()
            is not None
        )

    def _insert_new(self, c: sa.Connection, table: sa.Table, row: Mapping[str, Any]) -> bool:
        """Insert unless the key is taken. Whether it was inserted."""
        dialect = sqlite if self._db.is_sqlite else postgresql
        # Not rowcount: psycopg's is gone once the cursor is closed, which SQLAlchemy does for an insert.
        statement = dialect.insert(table).values(**row).on_conflict_do_nothing().returning(sa.literal(1))
        return c.execute(statement).first() is not None

    def is_answering(self) -> bool:
        try:
            with self._db.read() as c:
                c.execute(sa.select(sa.literal(1)))
        except sa.exc.SQLAlchemyError:
            return False
        return True


def _final_run_status() -> sa.Case[Any]:
    return sa.case({state.value: RUN_STATUS[state] for state in JobState}, value=t.jobs.c.state)


def _row(value: Job | Attempt) -> dict[str, Any]:
    return {item.name: getattr(value, item.name) for item in fields(value)}


def _reason(row: Mapping[str, Any]) -> FailureReason | None:
    return FailureReason(row["reason"]) if row["reason"] else None


def _job(row: Mapping[Any, Any]) -> Job:
    return Job(**{**row, "state": JobState(row["state"]), "reason": _reason(row)})


def _attempt(row: Mapping[Any, Any]) -> Attempt:
    return Attempt(**{**row, "reason": _reason(row)})
