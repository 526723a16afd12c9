"""Jobs in the database. Every change is a guarded update together with its event, in one transaction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import sqlalchemy as sa

from service import schema as t
from service.jobs import ARROWS, RUN_STATUS, TERMINAL, Attempt, Job, JobState, NewEvent
from service.store.base import Tables, job_of, row_of
from service.store.values import Answer, JobQuery


class JobTable(Tables):
    """Jobs, their labels, and the answers given under idempotency keys."""

    def add_job(self, job: Job, event: NewEvent, idempotency: tuple[str, Answer] | None = None) -> Answer | None:
        """Store a job with its first event. The answer given before, if the idempotency key is taken."""
        with self._db.write() as c:
            if idempotency is not None:
                key, answer = idempotency
                row = {"owner": job.owner, "key": key, "at": self._now(c), **asdict(answer)}
                if not self._insert_new(c, t.idempotency, row):
                    return self._answer(c, job.owner, key)
            c.execute(sa.insert(t.jobs).values(**row_of(job)))
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
            return job_of(c.execute(sa.select(t.jobs).where(t.jobs.c.id == job.id)).mappings().one())

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
        return None if row is None else job_of(row)

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
            return [job_of(row) for row in c.execute(query).mappings()]

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
                c.execute(sa.insert(t.attempts).values(**row_of(new_attempt)))
            if attempt_changes:
                a = t.attempts.c
                c.execute(
                    sa.update(t.attempts).where(a.job_id == job.id, a.number == job.attempt).values(**attempt_changes)
                )
            if to is not job.state:
                event = replace(event, data={**(event.data or {}), "from": job.state.value})
            self._add_event(c, job.id, event)
            row = c.execute(sa.select(t.jobs).where(t.jobs.c.id == job.id)).mappings().one()
        return job_of(row)

    def _update_job(self, c: sa.Connection, job: Job, values: Mapping[str, Any]) -> bool:
        j = t.jobs.c
        guard = (j.id == job.id, j.state == job.state, j.version == job.version)
        return c.execute(sa.update(t.jobs).where(*guard).values(**values)).rowcount == 1

    def note_job(self, job: Job, changes: Mapping[str, Any]) -> None:
        """Set bookkeeping fields that carry no version: run id and status."""
        assert set(changes) <= {"experiment_id", "run_id", "run_status"}, changes
        with self._db.write() as c:
            c.execute(sa.update(t.jobs).where(t.jobs.c.id == job.id).values(**changes))


def _final_run_status() -> sa.Case[Any]:
    return sa.case({state.value: RUN_STATUS[state] for state in JobState}, value=t.jobs.c.state)
