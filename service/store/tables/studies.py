"""Studies in the database. A study, its children and their jobs are written in one transaction, or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from syncnorm.service.jobs.actions import Verb
from syncnorm.service.jobs.actors import SERVICE, Actor, NewAuditEntry
from syncnorm.service.jobs.job import TERMINAL, Job, JobState, NewEvent
from syncnorm.service.jobs.study import DELETED, Counts, Study, StudyChild
from syncnorm.service.store import schema as t
from syncnorm.service.store.database import Database
from syncnorm.service.store.record_rows import CHILD, STUDY
from syncnorm.service.store.rows import job_of
from syncnorm.service.store.statements import JOBS, add_audit, columns
from syncnorm.service.store.tables.idempotency import IdempotencyTable
from syncnorm.service.store.tables.jobs import JobTable
from syncnorm.service.store.values import AddOutcome, GrowOutcome, NewJob, StoredResponse

MOST_FAILURES = 5
"""Failures in a row to make or publish one report, after which it is set aside."""
Family = list[tuple[StudyChild, Job | None]]
"""Children with their jobs; None: the job was deleted."""


class StudyTable:
    """Studies and their children."""

    def __init__(self, database: Database, jobs: JobTable, idempotency: IdempotencyTable) -> None:
        self._db = database
        self._jobs = jobs
        self._idempotency = idempotency

    def add(
        self,
        study: Study,
        children: Sequence[StudyChild],
        jobs: Sequence[Job],
        idempotency: tuple[str, StoredResponse] | None = None,
        most_unfinished: int | None = None,
        by: Actor = SERVICE,
    ) -> StoredResponse | AddOutcome:
        """Store a study and queue all its jobs. If nothing is stored, returns why: too many, or the earlier answer.

        most_unfinished: limit of jobs for each owner, including these; None: no limit.
        """
        with self._db.write() as c:
            remaining = (
                None
                if most_unfinished is None
                else self._jobs.remaining(c, {study.owner}, most_unfinished)[study.owner]
            )
            if idempotency is not None:
                key, answer = idempotency
                before = self._idempotency.take(c, study.owner, key, self._db.now(c), answer)
                if before is not None:
                    return before
            if remaining is not None and remaining < len(jobs):
                if idempotency is not None:
                    self._idempotency.forget(c, study.owner, idempotency[0])
                return AddOutcome.TOO_MANY
            c.execute(sa.insert(t.studies).values(**vars(study)))
            c.execute(sa.insert(t.study_children), [columns(t.study_children, child) for child in children])
            event = NewEvent(JobState.QUEUED, "Submitted.", {"owner": study.owner, "study": study.id}, by)
            entry = NewAuditEntry(by, "study.submit", study.id, after={"name": study.name, "jobs": len(jobs)})
            self._jobs.insert(c, [NewJob(job, event) for job in jobs], [entry] if by.kind == "user" else ())
        return AddOutcome.STORED

    def grow(
        self, study: Study, grown: Sequence[tuple[StudyChild, Job]], most_unfinished: int, by: Actor = SERVICE
    ) -> GrowOutcome:
        """Store more children of a study and queue their jobs, if it is as it was read."""
        with self._db.write() as c:
            mine = t.studies.c.id == study.id
            stored = c.execute(STUDY.query.where(mine).with_for_update()).one_or_none()
            if stored is None or STUDY.of(stored).spec != study.spec:
                return GrowOutcome.CHANGED
            if self._jobs.remaining(c, {study.owner}, most_unfinished)[study.owner] < len(grown):
                return GrowOutcome.TOO_MANY
            seeds = list(dict.fromkeys(child.seed for child, _ in grown))
            spec = study.spec | {"seeds": [*study.spec["seeds"], *seeds]}
            c.execute(sa.update(t.studies).where(mine).values(spec=spec, failures=0))
            c.execute(sa.insert(t.study_children), [columns(t.study_children, child) for child, _ in grown])
            event = NewEvent(JobState.QUEUED, "Submitted.", {"owner": study.owner, "study": study.id}, by)
            entry = NewAuditEntry(by, "study.add_seeds", study.id, after={"seeds": seeds, "jobs": len(grown)})
            self._jobs.insert(c, [NewJob(job, event) for _, job in grown], [entry] if by.kind == "user" else ())
        return GrowOutcome.STORED

    def get(self, study_id: str) -> Study | None:
        with self._db.read() as c:
            row = c.execute(STUDY.query.where(t.studies.c.id == study_id)).one_or_none()
        return None if row is None else STUDY.of(row)

    def find(self, owner: str | None, after: str | None, limit: int) -> list[Study]:
        """Studies, newest first, after the one with the id `after`."""
        s = t.studies.c
        wanted = [] if owner is None else [s.owner == owner]
        if after is not None:
            wanted.append(s.id < after)
        query = STUDY.query.where(*wanted).order_by(s.id.desc()).limit(limit)
        with self._db.read() as c:
            return [STUDY.of(row) for row in c.execute(query)]

    def family(self, study_id: str) -> Family:
        """All children in order, with their jobs."""
        with self._db.read() as c:
            return self._family(c, study_id)

    def _family(self, c: sa.Connection, study_id: str, *, lock: bool = False) -> Family:
        k, j = t.study_children.c, t.jobs.c
        mine = CHILD.query.where(k.study_id == study_id).order_by(k.number)
        children = [CHILD.of(row) for row in c.execute(mine)]
        # In the order of ids, so that two transactions that lock the same jobs can't deadlock.
        theirs = JOBS.where(j.id.in_([child.job_id for child in children])).order_by(j.id)
        found = c.execute(theirs.with_for_update() if lock else theirs)
        jobs = {job.id: job for job in map(job_of, found)}
        return [(child, jobs.get(child.job_id)) for child in children]

    def count_children(self, study_ids: Sequence[str]) -> dict[str, Counts]:
        """For each study, how many jobs are in each state."""
        k, j = t.study_children.c, t.jobs.c
        state = sa.func.coalesce(j.state, DELETED).label("child_state")
        together = t.study_children.outerjoin(t.jobs, j.id == k.job_id)
        query = sa.select(k.study_id, state, sa.func.count()).select_from(together).where(k.study_id.in_(study_ids))
        counts: dict[str, Counts] = {study_id: {} for study_id in study_ids}
        with self._db.read() as c:
            for study_id, name, count in c.execute(query.group_by(k.study_id, "child_state")):
                counts[study_id][name] = count
        return counts

    def apply(self, study_id: str, verb: Verb, now: datetime, by: Actor = SERVICE) -> list[str]:
        """Apply a verb to all children where their state allows it; ids of the jobs that changed."""
        with self._db.write() as c:
            if verb == "retry":  # retry its report, too
                c.execute(sa.update(t.studies).where(t.studies.c.id == study_id).values(failures=0))
            family = self._family(c, study_id, lock=True)
            results = [self._jobs.apply_one(c, job, verb, now, by) for _, job in family if job is not None]
            changed = [job.id for job, outcome in results if outcome == "done"]
            if changed:
                entry = NewAuditEntry(by, f"study.{verb}", study_id, after={"jobs_changed": len(changed)})
                add_audit(c, self._db.now(c), [entry])
        return changed

    def note(self, study_id: str, changes: Mapping[str, Any]) -> None:
        """Set bookkeeping of the run in MLflow."""
        assert set(changes) <= {"experiment_id", "run_id", "reported_at", "failures", "problem"}, changes
        with self._db.write() as c:
            c.execute(sa.update(t.studies).where(t.studies.c.id == study_id).values(**changes))

    def note_grouped(self, child: StudyChild, run_id: str) -> None:
        """Record that the child's run is grouped under the run of the study."""
        k = t.study_children.c
        with self._db.write() as c:
            mine = (k.study_id == child.study_id, k.number == child.number)
            c.execute(sa.update(t.study_children).where(*mine).values(grouped_run=run_id))

    def unreported(self) -> list[Study]:
        """Studies whose MLflow run does not show all results yet, and that are not set aside."""
        k, j = t.study_children.c, t.jobs.c
        moved_on = sa.or_(j.state.not_in(TERMINAL), j.finished_at > t.studies.c.reported_at)
        changed = sa.exists().where(k.study_id == t.studies.c.id, j.id == k.job_id, moved_on)
        with self._db.read() as c:
            unreported = sa.or_(t.studies.c.reported_at.is_(None), changed)
            query = STUDY.query.where(t.studies.c.failures < MOST_FAILURES, unreported)
            return [STUDY.of(row) for row in c.execute(query)]
