"""Starts waiting jobs: makes the scheduler's plan from the stored and the observed state, and carries it out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from math import isfinite

from syncnorm.service.integrations.ray_jobs import ClusterState
from syncnorm.service.jobs.instants import after, duration_s
from syncnorm.service.jobs.job import Attempt, Job, JobState, NewEvent, new_fence
from syncnorm.service.reconciler.backends import Backends, Tick
from syncnorm.service.reconciler.isolation import Isolation
from syncnorm.service.reconciler.job_step import LAUNCH_LEASE_S, JobStep
from syncnorm.service.scheduling.growth import Growth, GrowthTimer
from syncnorm.service.scheduling.queue import JobQueue
from syncnorm.service.scheduling.schedule import Allocation, Policy, Schedule
from syncnorm.service.scheduling.scheduler import schedule
from syncnorm.trainer.contract import protocol
from syncnorm.trainer.contract.plan import NodeCapacity


@dataclass(frozen=True)
class Prepared:
    """A plan with its input."""

    now: datetime
    allocations: Sequence[Allocation]
    schedule: Schedule


class LaunchStep:
    """Makes the plan and starts its jobs."""

    def __init__(
        self, backends: Backends, policy: Policy, queue: JobQueue, jobs: JobStep, items: Isolation, lease_s: float
    ) -> None:
        self._backends = backends
        self._policy = policy
        self._queue = queue
        self._jobs = jobs
        self._items = items
        self._lease_s = lease_s
        self._growth_timer = GrowthTimer()

    def prepare(self, view: ClusterState, attempts: Sequence[Attempt]) -> Prepared:
        """The plan for this moment. attempts: those that still hold capacity."""
        now = self._backends.store.now()
        allocations = self._allocations(attempts, now)
        return Prepared(
            now, allocations, schedule(self._queue.queues(), allocations, _usable(view.nodes), now, self._policy)
        )

    def start_fitting(self, tick: Tick, view: ClusterState, attempts: Sequence[Attempt]) -> tuple[Schedule, int]:
        """Returns the plan, and how many of its jobs were started."""
        prepared = self.prepare(view, attempts)
        found, now = prepared.schedule, prepared.now
        for name, error in found.faults.items():
            self._items.fail("plan", name, error, self._backends.giving_up(name, tick))
        if found.starts:
            self._items.worked("plan")
        for job in found.preempts:
            tick.check()
            self._items.attempt("preempt", job.id, lambda job=job: self._preempt(job, found, now, tick))  # type: ignore[misc]
        started = sum(self._begin_isolated(job, found.sizes[job.id], now, tick) for job in found.starts)
        self._growth_timer = self._growth_timer.after(found.spare, now)
        if growth := self._growth_timer.due(found.spare, prepared.allocations, now, self._policy):
            self._items.attempt("grow", growth.job.id, lambda: self._grow(growth, now, tick))
        return found, started

    def _preempt(self, job: Job, found: Schedule, now: datetime, tick: Tick) -> None:
        message = f"{found.preempts_for(job)} has a higher priority and needs the capacity."
        event = NewEvent("preempt_requested", message)
        if self._backends.store.jobs.move(
            job, job.state, {"stop": "preempt", "stop_at": now}, event=event, lease=tick.token
        ):
            self._backends.on_change(job.id)

    def _grow(self, growth: Growth, now: datetime, tick: Tick) -> None:
        """Ask the job to stop with a checkpoint. It is first among its owner's jobs, and starts again with the free
        capacity."""
        job = growth.job
        message = (
            f"There has been capacity for {growth.to} workers instead of {growth.workers} for "
            f"{growth.settled_s:.0f} s; "
            "the job stops with a checkpoint and continues with them."
        )
        event = NewEvent("resize_requested", message, growth.numbers)
        if self._backends.store.jobs.move(
            job, job.state, {"stop": "resize", "stop_at": now}, event=event, lease=tick.token
        ):
            self._backends.on_change(job.id)

    def _allocations(self, attempts: Sequence[Attempt], now: datetime) -> list[Allocation]:
        jobs = {job.id: job for job in self._backends.store.workload.jobs([attempt.job_id for attempt in attempts])}
        return [_allocation_of(attempt, job, now) for attempt in attempts if (job := jobs.get(attempt.job_id))]

    def _begin_isolated(self, job: Job, workers: int, now: datetime, tick: Tick) -> bool:
        """Whether it was started. The launch is another item: that of the job, which is `starting` then."""
        tick.check()
        give_up = self._backends.giving_up(job.id, tick)
        begun = self._items.attempt("start", job.id, lambda: self._begin(job, workers, now, tick), give_up)
        if begun is None:
            return False
        self._jobs.advance(*begun, tick)
        return True

    def _begin(self, job: Job, workers: int, now: datetime, tick: Tick) -> tuple[Job, Attempt] | None:
        """Record the next attempt; None: the job changed at the same moment."""
        store = self._backends.store
        checkpoint = next(iter(store.history.checkpoints(job.id)), None)
        number = job.attempt + 1
        attempt = Attempt(
            id=protocol.attempt_id(job.id, number),
            job_id=job.id,
            number=number,
            fence=new_fence(),
            workers=workers,
            created_at=now,
            lease_expires_at=after(now, max(self._lease_s, LAUNCH_LEASE_S)),
            resume_from=checkpoint.path if checkpoint else None,
            resume_step=checkpoint.step if checkpoint else 0,
            step=checkpoint.step if checkpoint else 0,
        )
        event = NewEvent(JobState.STARTING, f"Attempt {number} started.", {"attempt": number, "workers": workers})
        changes = {"attempt": number, "not_before": None, "world_size": workers}
        also = _workers_changed(job, attempt)
        moved = store.jobs.move(
            job, JobState.STARTING, changes, event=event, also=also, new_attempt=attempt, lease=tick.token
        )
        if moved is None:
            return None
        self._queue.note(moved)
        self._backends.announce(job, moved)
        return moved, attempt


def _workers_changed(job: Job, attempt: Attempt) -> list[NewEvent]:
    """An event where an attempt of an elastic job has other workers than the one before, or than was asked for."""
    before = job.world_size or job.workers
    if attempt.workers == before:
        return []
    sizes = {"workers": attempt.workers, "before": before, "step": attempt.resume_step}
    message = (
        f"Attempt {attempt.number} trains on {attempt.workers} workers instead of {before}, from step "
        f"{attempt.resume_step}. The global batch stays the same; each worker takes a larger or smaller share of it."
    )
    return [NewEvent("workers_changed", message, {"attempt": attempt.number, **sizes})]


def _allocation_of(attempt: Attempt, job: Job, now: datetime) -> Allocation:
    # Once its workers train, the cluster's report includes what they use.
    placed = attempt.phase is not None and attempt.phase not in ("preparing", "starting_workers")
    began = (attempt.phases or {}).get("training")
    trains_since = datetime.fromisoformat(began) if began else None
    return Allocation(job, attempt.created_at, placed, _ends_at(job, now), attempt.workers, trains_since)


def _ends_at(job: Job, now: datetime) -> datetime | None:
    """Estimated from the speed of its steps, or its deadline."""
    if job.deadline_at is not None:
        return max(now, job.deadline_at)
    eta_s = duration_s((job.progress or {}).get("eta_s"))
    return None if eta_s is None else after(now, eta_s)


def _usable(nodes: Sequence[NodeCapacity]) -> list[NodeCapacity]:
    """Hosts with finite numbers: nothing starts on one that reports NaN."""
    return [node for node in nodes if all(map(isfinite, (node.cpus, node.gpus, node.free_cpus, node.free_gpus)))]
