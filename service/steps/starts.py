"""Which waiting jobs start now: the scheduler's plan, made of what is stored and seen, and carried out."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from service.dispatch import View
from service.instants import after
from service.jobs import Attempt, Job, JobState, NewEvent, new_fence
from service.scheduling.growth import Growth, Settling
from service.scheduling.plan import Held, Policy, Schedule
from service.scheduling.scheduler import schedule
from service.steps.one_job import LAUNCH_LEASE_S, JobStep
from service.steps.ports import Look, Ports
from service.waiting import Waiting
from trainer import attempt as protocol


class Starts:
    """Plans, and begins what the plan starts."""

    def __init__(self, ports: Ports, policy: Policy, waiting: Waiting, jobs: JobStep, lease_s: float) -> None:
        self._ports = ports
        self._policy = policy
        self._waiting = waiting
        self._jobs = jobs
        self._lease_s = lease_s
        self._settling = Settling()

    def start_what_fits(self, look: Look, view: View, attempts: Sequence[Attempt]) -> Schedule:
        """attempts: those that still take up room."""
        store = self._ports.store
        now = store.now()
        held = self._held(attempts, now)
        plan = schedule(self._waiting.lines(), held, view.nodes, now, self._policy)
        for job in plan.preempts:
            event = NewEvent("preempt_requested", "A job of higher priority needs the room.")
            if store.move(job, job.state, {"stop": "preempt", "stop_at": now}, event=event, lease=look.token):
                self._ports.on_change(job.id)
        for job in plan.starts:
            self._begin(job, plan.sizes[job.id], now, look)
        self._settling = self._settling.after(plan.room, now)
        if growth := self._settling.ripe(plan.room, held, now, self._policy):
            self._grow(growth, now, look)
        return plan

    def _grow(self, growth: Growth, now: datetime, look: Look) -> None:
        """Have it stop with a checkpoint; it is first in its line, and starts again with what there is room for."""
        job = growth.job
        message = (
            f"There has been room for {growth.to} workers instead of {growth.workers} for {growth.settled_s:.0f} s; "
            "it stops for a moment and goes on with them."
        )
        event = NewEvent("resize_requested", message, growth.numbers)
        if self._ports.store.move(job, job.state, {"stop": "resize", "stop_at": now}, event=event, lease=look.token):
            self._ports.on_change(job.id)

    def _held(self, attempts: Sequence[Attempt], now: datetime) -> list[Held]:
        jobs = {job.id: job for job in self._ports.store.jobs_by_id([attempt.job_id for attempt in attempts])}
        held = []
        for attempt in attempts:
            if job := jobs.get(attempt.job_id):
                # Once its workers train, what they use is part of what the cluster reports.
                placed = attempt.phase is not None and attempt.phase not in ("preparing", "starting_workers")
                began = (attempt.phases or {}).get("training")
                trains_since = datetime.fromisoformat(began) if began else None
                held.append(Held(job, attempt.created_at, placed, _ends_at(job, now), attempt.workers, trains_since))
        return held

    def _begin(self, job: Job, workers: int, now: datetime, look: Look) -> None:
        """Write the next attempt down, then launch it."""
        store = self._ports.store
        checkpoint = next(iter(store.checkpoints(job.id)), None)
        number = job.attempt + 1
        attempt = Attempt(
            id=protocol.attempt_id(job.id, number),
            job_id=job.id,
            number=number,
            fence=new_fence(),
            workers=workers,
            created_at=now,
            lease_expires_at=now + timedelta(seconds=max(self._lease_s, LAUNCH_LEASE_S)),
            resume_from=checkpoint.path if checkpoint else None,
            resume_step=checkpoint.step if checkpoint else 0,
            step=checkpoint.step if checkpoint else 0,
        )
        event = NewEvent(JobState.STARTING, f"Attempt {number} starts.", {"attempt": number, "workers": workers})
        changes = {"attempt": number, "not_before": None, "world_size": workers}
        also = _workers_changed(job, attempt)
        moved = store.move(
            job, JobState.STARTING, changes, event=event, also=also, new_attempt=attempt, lease=look.token
        )
        if moved is not None:
            self._waiting.note(moved)
            self._ports.tell(job, moved)
            self._jobs.advance(moved, attempt, look)


def _workers_changed(job: Job, attempt: Attempt) -> list[NewEvent]:
    """An event where an attempt of an elastic job has other workers than the one before, or than was asked for."""
    before = job.world_size or job.workers
    if attempt.workers == before:
        return []
    sizes = {"workers": attempt.workers, "before": before, "step": attempt.resume_step}
    message = (
        f"Attempt {attempt.number} trains on {attempt.workers} workers instead of {before}, from step "
        f"{attempt.resume_step}. The global batch stays; each worker takes a larger or smaller part of it."
    )
    return [NewEvent("workers_changed", message, {"attempt": attempt.number, **sizes})]


def _ends_at(job: Job, now: datetime) -> datetime | None:
    """By the pace of its steps, or by its deadline."""
    if job.deadline_at is not None:
        return max(now, job.deadline_at)
    eta_s = (job.progress or {}).get("eta_s")
    return None if eta_s is None else after(now, eta_s)
