"""Which waiting jobs start now, which give way, and why the others wait. Pure: queue, attempts and hosts in, plan out.

A job starts whole or not at all; with min_workers, with as many workers as fit, and at least those. Order: points,
which are the priority, plus one for every `ageing_s` of waiting, so that nothing waits for ever, less `share_points`
for the part of the cluster that the owner uses already. The first job that does not fit keeps a reservation: later ones
may only start where they can't delay it (EASY backfilling, Lifka 1995, by the estimated ends of what runs now). If jobs
of strictly lower priority stand in its way, they are asked to give way. An elastic job reserves room for its least.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from heapq import heapify, heappop, heappush

from service.jobs import Job, JobState
from service.room import Gang, Rooms, gang
from trainer.plan import NodeCapacity

_NEVER = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Policy:
    """How the cluster is shared. max_running, max_gpus: for one owner at a time; None: no limit."""

    ageing_s: float = 300.0
    share_points: float = 20.0
    """Points an owner loses for using the whole cluster; half of it costs half."""
    max_running: int | None = None
    max_gpus: int | None = None
    preempt: bool = True
    backfill_depth: int = 200
    """Jobs looked at behind the first one that does not fit."""


@dataclass(frozen=True)
class Held:
    """A job whose attempt has room. placed: its workers show up in what the cluster reports as used."""

    job: Job
    since: datetime
    placed: bool
    ends_at: datetime | None = None
    """Estimate; None: nobody knows."""
    workers: int | None = None
    """Of the attempt; None: all that the job asks for."""

    @property
    def shape(self) -> Gang:
        return gang(self.job, self.workers)


@dataclass(frozen=True)
class Wait:
    """Why a job does not start now. numbers: what it would take."""

    code: str
    message: str
    numbers: dict[str, float] = field(default_factory=dict)
    blockers: tuple[str, ...] = ()
    starts_at: datetime | None = None
    """Estimate for the start; None: nobody knows."""


@dataclass(frozen=True)
class Schedule:
    starts: tuple[Job, ...]
    preempts: tuple[Job, ...]
    waits: dict[str, Wait]
    """For every job that was looked at; those behind are not."""
    owners: dict[str, Wait]
    """Owners none of whose jobs may start, and why."""
    sizes: Mapping[str, int]
    """Workers of each job that starts; fewer than it asks for only if it is elastic."""

    def wait(self, job: Job) -> Wait | None:
        """Why a job waits, as far as it was looked at."""
        return self.waits.get(job.id) or self.owners.get(job.owner)


Place = tuple[float, str, Job]
"""A waiting job behind what sorts it: rank, then id."""
Lines = Mapping[str, Sequence[Place]]
"""Waiting jobs by owner, each line in order. Sorted beforehand, so that a plan only looks at the front of each."""


def schedule(
    lines: Lines, held: Sequence[Held], nodes: Sequence[NodeCapacity], now: datetime, policy: Policy
) -> Schedule:
    """The plan for this moment."""
    return _Pass(held, nodes, now, policy).run(lines)


def place(job: Job, policy: Policy) -> Place:
    return rank(job.priority, job.queued_at, policy), job.id, job


def in_lines(jobs: Iterable[Job], policy: Policy) -> Lines:
    lines: dict[str, list[Place]] = defaultdict(list)
    for job in jobs:
        lines[job.owner].append(place(job, policy))
    for line in lines.values():
        line.sort()
    return lines


def points(job: Job, at: datetime, policy: Policy) -> float:
    """Priority plus what was earned by waiting until `at`."""
    return job.priority + max(0.0, (at - job.queued_at).total_seconds()) / policy.ageing_s


def rank(priority: int, queued_at: datetime, policy: Policy) -> float:
    """When a job would have come, had it earned its priority by waiting. In this order points fall, at any time."""
    return queued_at.timestamp() - priority * policy.ageing_s


class _Pass:
    """One run through the queue. Room shrinks as jobs are picked."""

    def __init__(self, held: Sequence[Held], nodes: Sequence[NodeCapacity], now: datetime, policy: Policy) -> None:
        self._held = held
        self._now = now
        self._policy = policy
        self._cpus = sum(node.cpus for node in nodes) or 1.0
        self._gpus = sum(node.gpus for node in nodes) or 1.0
        self._empty = Rooms.of(nodes, whole=True)
        self._rooms = Rooms.of(nodes).holding((h.shape, h.placed) for h in held)
        self._usage: dict[str, float] = defaultdict(float)
        self._running: dict[str, int] = defaultdict(int)
        self._gpus_of: dict[str, float] = defaultdict(float)
        for item in held:
            self._charge(item.job, item.shape)
        self._starts: list[Job] = []
        self._sizes: dict[str, int] = {}
        self._waits: dict[str, Wait] = {}
        self._owners: dict[str, Wait] = {}
        self._leaving = {item.job.id for item in held}

    def run(self, lines: Lines) -> Schedule:
        head: Job | None = None
        after_head: Rooms | None = None
        preempts: tuple[Job, ...] = ()
        too_big: set[Gang] = set()
        depth = 0
        for job in self._in_order(lines):
            if wait := self._not_eligible(job):
                self._waits[job.id] = wait
                continue
            least = gang(job, job.least_workers)
            now = 0 if least in too_big else job.size_within(self._rooms.largest(gang(job)))
            if not now:
                too_big.add(least)
            size = self._size_behind(job, now, after_head)
            if size:
                self._start(job, gang(job, size))
                after_head = after_head and after_head.without(gang(job, size))
            elif head is None:
                head = job
                after_head, preempts = self._reserve(job)
            else:
                self._waits[job.id] = self._behind(job, head, fits_now=now > 0)
            depth += head is not None
            if depth > self._policy.backfill_depth:
                break
        return Schedule(tuple(self._starts), preempts, self._waits, self._owners, self._sizes)

    def _size_behind(self, job: Job, now: int, after_head: Rooms | None) -> int:
        """Of the `now` workers there is room for, as many as the quota allows and delay nobody ahead."""
        size = now and job.size_within(min(now, self._quota_left(job)))
        if size and after_head is not None:
            size = job.size_within(min(size, after_head.largest(gang(job, size))))
        return size

    def _in_order(self, lines: Lines) -> Iterable[Job]:
        """Most points first. What is picked counts against its owner at once."""
        next_of = dict.fromkeys(lines, 0)
        owners = [(line[0][0] + self._penalty(owner), owner) for owner, line in lines.items() if line]
        heapify(owners)
        while owners:
            at, owner = heappop(owners)
            line, index = lines[owner], next_of[owner]
            if at != (now := line[index][0] + self._penalty(owner)):  # was served since: stands in line again
                heappush(owners, (now, owner))
                continue
            if wait := self._too_many_running(owner):
                self._owners[owner] = wait
                continue
            job = line[index][2]
            if job.id not in self._leaving:  # else its last attempt still has to leave the cluster
                yield job
            next_of[owner] = index = index + 1
            if index < len(line):
                heappush(owners, (line[index][0] + self._penalty(owner), owner))

    def _penalty(self, owner: str) -> float:
        return self._usage[owner] * self._policy.share_points * self._policy.ageing_s

    def _not_eligible(self, job: Job) -> Wait | None:
        if job.stop is not None:
            return Wait("stop_requested", f"Somebody asked to {job.stop} it.")
        if job.not_before is not None and job.not_before > self._now:
            left_s = (job.not_before - self._now).total_seconds()
            message = f"The last attempt failed; the next one may start in {left_s:.0f} s."
            return Wait("backoff", message, {"seconds": left_s}, starts_at=job.not_before)
        if self._empty.without(gang(job, job.least_workers)) is None:
            return Wait("never_fits", "Even the empty cluster has no room for all its workers. Ask for fewer.")
        return self._over_quota(job)

    def _too_many_running(self, owner: str) -> Wait | None:
        running, most = self._running[owner], self._policy.max_running
        if most is None or running < most:
            return None
        numbers = {"running": float(running), "limit": float(most)}
        return Wait("quota_running", f"{owner} has {running} jobs under way; the limit is {most}.", numbers)

    def _over_quota(self, job: Job) -> Wait | None:
        gpus, limit = self._gpus_of[job.owner], self._policy.max_gpus
        if limit is not None and not job.size_within(self._quota_left(job)):
            wanted = float(job.least_workers * job.gpus_per_worker)
            numbers = {"in_use": gpus, "wanted": wanted, "limit": float(limit)}
            message = f"{job.owner} uses {gpus:g} GPUs and wants {wanted:g} more; the limit is {limit}."
            return Wait("quota_gpus", message, numbers)
        return None

    def _quota_left(self, job: Job) -> int:
        """Workers of this job that its owner may still have."""
        if self._policy.max_gpus is None or not job.gpus_per_worker:
            return job.workers
        return max(0, int((self._policy.max_gpus - self._gpus_of[job.owner]) // job.gpus_per_worker))

    def _start(self, job: Job, shape: Gang) -> None:
        rooms = self._rooms.without(shape)
        assert rooms is not None, f"{job.id} does not fit"
        self._rooms = rooms
        self._charge(job, shape)
        self._starts.append(job)
        self._sizes[job.id] = shape.workers

    def _charge(self, job: Job, shape: Gang) -> None:
        """Dominant share (Ghodsi et al. 2011): the larger of the owner's shares of CPUs and GPUs."""
        cpus, gpus = shape.workers * shape.cpus, shape.workers * shape.gpus
        self._usage[job.owner] += max(cpus / self._cpus, gpus / self._gpus if gpus else 0.0)
        self._running[job.owner] += 1
        self._gpus_of[job.owner] += gpus

    def _reserve(self, head: Job) -> tuple[Rooms | None, tuple[Job, ...]]:
        """(what later jobs may use without delaying the head, who has to give way); records why the head waits."""
        shape = gang(head, head.least_workers)
        missing = shape.workers - self._rooms.largest(shape)
        numbers = {"workers_missing": float(missing), "workers": float(shape.workers)}
        leaving = sorted(self._held, key=_ends_at)
        count = bisect_left(range(len(leaving)), True, key=lambda n: self._fits_after(shape, leaving[: n + 1])) + 1
        blockers = leaving[:count]
        after = self._rooms_after(blockers)
        rest = after.without(shape)
        at = max((_ends_at(item) for item in blockers), default=_NEVER)
        starts_at = None if at == _NEVER else max(at, self._now)
        victims = self._victims(head)
        if victims:
            message = f"{missing} of its workers have no room yet; {len(victims)} jobs of lower priority give way."
            names = tuple(job.id for job in victims)
            self._waits[head.id] = Wait("waiting_for_preemption", message, numbers, names, starts_at)
            return rest, tuple(job for job in victims if job.stop is None)
        message = f"{missing} of {shape.workers} workers have no room; it is next in line."
        names = tuple(item.job.id for item in blockers)
        self._waits[head.id] = Wait("no_room", message, numbers, names, starts_at)
        return rest, ()

    def _rooms_after(self, gone: Sequence[Held]) -> Rooms:
        """By the books, once these have left; with what was started in this pass."""
        names = {item.job.id for item in gone}
        stay = [item.shape for item in self._held if item.job.id not in names]
        stay += [gang(job, self._sizes[job.id]) for job in self._starts]
        return self._empty.holding((shape, False) for shape in stay)

    def _fits_after(self, shape: Gang, gone: Sequence[Held]) -> bool:
        return self._rooms_after(gone).without(shape) is not None

    def _victims(self, head: Job) -> list[Job]:
        """The fewest, least important, youngest attempts whose room lets the head in; those leaving already count."""
        if not self._policy.preempt:
            return []
        shape = gang(head, head.least_workers)
        leaving = [item for item in self._held if item.job.stop is not None]
        if self._fits_after(shape, leaving):
            return [item.job for item in leaving if item.job.stop == "preempt"]
        weaker = [item for item in self._held if item not in leaving and self._must_yield(item, head)]
        weaker.sort(key=lambda item: (item.job.priority, -item.since.timestamp()))
        count = bisect_left(
            range(len(weaker)), True, key=lambda n: self._fits_after(shape, [*leaving, *weaker[: n + 1]])
        )
        if count == len(weaker):
            return []
        chosen = weaker[: count + 1]
        for item in reversed(chosen[:-1]):  # let those stay without whose room the head fits as well
            rest = [other for other in chosen if other is not item]
            chosen = rest if self._fits_after(shape, [*leaving, *rest]) else chosen
        return [item.job for item in chosen]

    def _must_yield(self, item: Held, head: Job) -> bool:
        return item.job.state in _PREEMPTIBLE and points(item.job, item.since, self._policy) < head.priority

    def _behind(self, job: Job, head: Job, *, fits_now: bool) -> Wait:
        if fits_now:
            message = f"There is room, but taking it would delay {head.id}, which is ahead."
            return Wait("held_for_job_ahead", message, blockers=(head.id,))
        shape = gang(job, job.least_workers)
        missing = shape.workers - self._rooms.largest(shape)
        message = f"{missing} of {shape.workers} workers have no room; {head.id} and perhaps others are ahead."
        return Wait("no_room_behind", message, {"workers_missing": float(missing)}, (head.id,))


_PREEMPTIBLE = frozenset({JobState.STARTING, JobState.RUNNING})


def _ends_at(item: Held) -> datetime:
    return item.ends_at or _NEVER
