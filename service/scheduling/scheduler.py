"""One pass through the queue.

A job starts whole or not at all; with min_workers, with as many workers as fit, and at least those. Order: points,
minus `share_points` for the share of the cluster that the owner uses already. The first job that does not fit keeps a
reservation: later ones may only start where they can't delay it (EASY backfilling, Lifka 1995, by the estimated ends of
running jobs). If jobs of strictly lower priority are in its way, they are preempted. An elastic job reserves capacity
for min_workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from syncnorm.service.jobs.instants import NEVER
from syncnorm.service.jobs.job import Job, JobState
from syncnorm.service.scheduling.capacity import Capacity, Gang, gang
from syncnorm.service.scheduling.growth import can_grow
from syncnorm.service.scheduling.ordering import QueuesByOwner, in_order
from syncnorm.service.scheduling.preemption import ClusterLedger, blockers, ends_at, victims
from syncnorm.service.scheduling.quotas import Quotas
from syncnorm.service.scheduling.schedule import Allocation, Policy, Schedule, WaitReason
from syncnorm.trainer.contract.plan import NodeCapacity
from syncnorm.trainer.contract.text import counted


def schedule(
    queues: QueuesByOwner,
    allocations: Sequence[Allocation],
    nodes: Sequence[NodeCapacity],
    now: datetime,
    policy: Policy,
) -> Schedule:
    """The plan for this moment."""
    return _SchedulingPass(allocations, nodes, now, policy).run(queues)


class _SchedulingPass:
    """One pass: free capacity shrinks as jobs are picked."""

    def __init__(
        self, allocations: Sequence[Allocation], nodes: Sequence[NodeCapacity], now: datetime, policy: Policy
    ) -> None:
        self._allocations = allocations
        self._now = now
        self._policy = policy
        self._quotas = Quotas(allocations, nodes, policy)
        self._empty = Capacity.of(nodes, whole=True)
        self._capacity = Capacity.of(nodes).holding((h.shape, h.placed) for h in allocations)
        self._starts: dict[str, tuple[Job, Gang]] = {}
        self._waits: dict[str, WaitReason] = {}
        self._owners: dict[str, WaitReason] = {}
        self._held_back: set[str] = set()
        self._leaving = {item.job.id for item in allocations}
        self._head: Job | None = None
        self._after_head: Capacity | None = None
        self._preempts: tuple[Job, ...] = ()
        self._too_big: set[Gang] = set()
        self._faults: dict[str, Exception] = {}

    def run(self, queues: QueuesByOwner) -> Schedule:
        depth = 0
        for job in in_order(queues, self._quotas.penalty, self._may_go):
            if job.id in self._leaving:  # its last attempt still has to leave the cluster
                continue
            try:
                looked_at = self._consider(job)
            except Exception as error:  # of any kind: the others are planned without it
                self._faults[job.id] = error
                continue
            depth += looked_at and self._head is not None
            if depth > self._policy.backfill_depth:
                break
        sizes = {name: shape.workers for name, (_, shape) in self._starts.items()}
        starts = tuple(job for job, _ in self._starts.values())
        spare = {} if self._head or starts or self._somebody_comes_soon() else self._spare_workers()
        return Schedule(starts, self._preempts, self._waits, self._owners, sizes, spare, self._faults)

    def _consider(self, job: Job) -> bool:
        """Start it or record why it waits; returns whether capacity is all that it could lack."""
        if wait := self._ineligibility(job):
            self._waits[job.id] = wait
            return False
        least = gang(job, job.least_workers)
        now = 0 if least in self._too_big else job.size_within(self._capacity.largest(gang(job)))
        if not now:
            self._too_big.add(least)
        size = self._size_behind(job, now, self._after_head)
        if size:
            self._start(job, gang(job, size))
            self._after_head = self._after_head and self._after_head.without(gang(job, size))
        elif self._head is None:
            self._after_head, self._preempts = self._reserve(job)
            self._head = job
        else:
            self._waits[job.id] = self._behind(job, self._head, fits_now=now > 0)
        return True

    def _somebody_comes_soon(self) -> bool:
        """Whether a job that waits for something else, or is leaving, will claim capacity soon."""
        if any(wait.code == "backoff" for wait in self._waits.values()):
            return True
        return any(item.job.stop is not None or item.job.state is JobState.QUEUED for item in self._allocations)

    def _spare_workers(self) -> dict[str, int]:
        """The number of workers each elastic job could have: next to its own, where they really are, and by the records
        once it has left.

        Not for owners with jobs that wait for a quota only: those would start as soon as it stops.
        """
        found = {}
        ledger = ClusterLedger(self._empty, self._allocations, ())
        for item in filter(can_grow, self._allocations):
            if item.job.owner in self._held_back:
                continue
            try:
                size = self._size_grown(item, ledger)
            except Exception as error:
                self._faults[item.job.id] = error
                continue
            if size > item.shape.workers:
                found[item.job.id] = size
        return found

    def _size_grown(self, item: Allocation, ledger: ClusterLedger) -> int:
        job, workers = item.job, item.shape.workers
        more = min(self._capacity.largest(gang(job, job.workers - workers)), self._quotas.workers_left(job))
        return job.size_within(min(workers + more, ledger.after([item]).largest(gang(job))) if more else 0)

    def _may_go(self, owner: str) -> bool:
        if wait := self._quotas.too_many_running(owner):
            self._owners[owner] = wait
            self._held_back.add(owner)
        return wait is None

    def _size_behind(self, job: Job, now: int, after_head: Capacity | None) -> int:
        """Of the `now` workers that fit, as many as the quota allows and as delay no job ahead."""
        size = now and job.size_within(min(now, self._quotas.workers_left(job)))
        if size and after_head is not None:
            size = job.size_within(min(size, after_head.largest(gang(job, size))))
        return size

    def _ineligibility(self, job: Job) -> WaitReason | None:
        if job.stop is not None:
            return WaitReason("stop_requested", f"A {job.stop} was requested.")
        if job.not_before is not None and job.not_before > self._now:
            left_s = (job.not_before - self._now).total_seconds()
            message = f"The last attempt ended early; the next one starts in {left_s:.0f} s at the earliest."
            return WaitReason("backoff", message, {"seconds": left_s}, starts_at=job.not_before)
        if self._empty.without(gang(job, job.least_workers)) is None:
            return _never_fits(gang(job, job.least_workers), self._empty)
        if wait := self._quotas.too_many_gpus(job):
            self._held_back.add(job.owner)
        return wait

    def _start(self, job: Job, shape: Gang) -> None:
        capacity = self._capacity.without(shape)
        assert capacity is not None, f"{job.id} does not fit"
        self._capacity = capacity
        self._quotas.charge(job, shape)
        self._starts[job.id] = job, shape

    def _reserve(self, head: Job) -> tuple[Capacity | None, tuple[Job, ...]]:
        """(capacity for later jobs that does not delay the head, jobs to preempt); records why the head waits."""
        shape = gang(head, head.least_workers)
        missing = shape.workers - self._capacity.largest(shape)
        numbers = {"workers_missing": float(missing), "workers": float(shape.workers)}
        ledger = ClusterLedger(self._empty, self._allocations, [started for _, started in self._starts.values()])
        in_the_way = blockers(shape, ledger)
        rest = ledger.after(in_the_way).without(shape)
        at = max(map(ends_at, in_the_way), default=NEVER)
        starts_at = None if at == NEVER else max(at, self._now)
        leave = victims(head, shape, ledger, self._policy)
        if leave:
            message = (
                f"There is no capacity yet for {_some(missing, shape)}; {counted(len(leave), 'job')} of lower priority "
                "must stop first."
            )
            names = tuple(job.id for job in leave)
            self._waits[head.id] = WaitReason("waiting_for_preemption", message, numbers, names, starts_at)
            return rest, tuple(job for job in leave if job.stop is None)
        message = f"There is no capacity for {_some(missing, shape)}; the job is next in the queue."
        names = tuple(item.job.id for item in in_the_way)
        self._waits[head.id] = WaitReason("no_room", message, numbers, names, starts_at)
        return rest, ()

    def _behind(self, job: Job, head: Job, *, fits_now: bool) -> WaitReason:
        if fits_now:
            message = f"There is capacity, but using it would delay {head.id}, which is ahead in the queue."
            return WaitReason("held_for_job_ahead", message, blockers=(head.id,))
        shape = gang(job, job.least_workers)
        missing = shape.workers - self._capacity.largest(shape)
        message = f"There is no capacity for {_some(missing, shape)}; {head.id} and perhaps others are ahead."
        return WaitReason("no_room_behind", message, {"workers_missing": float(missing)}, (head.id,))


def _never_fits(shape: Gang, empty: Capacity) -> WaitReason:
    found = empty.largest(shape)
    each = f"{shape.cpus:g} CPU" + (f" and {shape.gpus:g} GPU" if shape.gpus else "")
    message = (
        f"The job needs {counted(shape.workers, 'worker')} of {each} each, and the whole cluster can hold {found}."
        " Add hosts or bring lost ones back, or submit it again with fewer or smaller workers."
    )
    return WaitReason("never_fits", message, {"workers_missing": float(shape.workers - found)})


def _some(workers: int, shape: Gang) -> str:
    """`2 of its 5 workers`."""
    return f"{workers} of its {counted(shape.workers, 'worker')}" if shape.workers > 1 else "its worker"
