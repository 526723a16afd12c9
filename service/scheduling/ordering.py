"""The order of the queue, by points: the priority, plus one for every `ageing_s` of waiting.

So nothing waits for ever. The order does not change with time, since all jobs gain points at the same rate, and sorting
needs no clock.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from heapq import heapify, heappop, heappush

from syncnorm.service.jobs.job import Job
from syncnorm.service.scheduling.schedule import Policy

QueueEntry = tuple[float, str, Job]
"""A waiting job after its sort keys: rank, then id."""
QueuesByOwner = Mapping[str, Sequence[QueueEntry]]
"""Waiting jobs by owner, each line sorted, so that a plan only reads the front of each."""


def queue_entry(job: Job, policy: Policy) -> QueueEntry:
    return rank(job.priority, job.queued_at, policy), job.id, job


def queues_by_owner(jobs: Iterable[Job], policy: Policy) -> QueuesByOwner:
    queues: dict[str, list[QueueEntry]] = defaultdict(list)
    for job in jobs:
        queues[job.owner].append(queue_entry(job, policy))
    for queue in queues.values():
        queue.sort()
    return queues


def points(job: Job, at: datetime, policy: Policy) -> float:
    """Priority plus the points for waiting until `at`."""
    return job.priority + max(0.0, (at - job.queued_at).total_seconds()) / policy.ageing_s


def rank(priority: int, queued_at: datetime, policy: Policy) -> float:
    """When a job would have come if its priority were waiting time. In this order points fall, at any time."""
    return queued_at.timestamp() - priority * policy.ageing_s


def in_order(queues: QueuesByOwner, penalty: Callable[[str], float], may_go: Callable[[str], bool]) -> Iterator[Job]:
    """Jobs of all lines, most points first.

    penalty: of an owner, in the unit of ranks; may grow with each job that is picked, and takes effect at once. may_go:
    asked for an owner before each of their jobs; False skips the owner.
    """
    next_of = dict.fromkeys(queues, 0)
    owners = [(queue[0][0] + penalty(owner), owner) for owner, queue in queues.items() if queue]
    heapify(owners)
    while owners:
        at, owner = heappop(owners)
        queue, index = queues[owner], next_of[owner]
        if at != (now := queue[index][0] + penalty(owner)):  # the penalty has grown since: sort again
            heappush(owners, (now, owner))
            continue
        if not may_go(owner):
            continue
        yield queue[index][2]
        next_of[owner] = index = index + 1
        if index < len(queue):
            heappush(owners, (queue[index][0] + penalty(owner), owner))
