"""Which running jobs must leave before the first waiting job fits, by ending or by being preempted."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from syncnorm.service.jobs.instants import NEVER
from syncnorm.service.jobs.job import Job, JobState
from syncnorm.service.scheduling.capacity import Capacity, Gang
from syncnorm.service.scheduling.ordering import points
from syncnorm.service.scheduling.schedule import Allocation, Policy

_PREEMPTIBLE = frozenset({JobState.STARTING, JobState.RUNNING})


@dataclass(frozen=True)
class ClusterLedger:
    """Who holds capacity, by our own records. empty: the whole cluster; started: gangs that this pass has started."""

    empty: Capacity
    allocations: Sequence[Allocation]
    started: Sequence[Gang]

    def after(self, gone: Sequence[Allocation]) -> Capacity:
        """The capacity once these have left."""
        names = {item.job.id for item in gone}
        stay = [item.shape for item in self.allocations if item.job.id not in names]
        return self.empty.holding((shape, False) for shape in (*stay, *self.started))

    def fits_after(self, shape: Gang, gone: Sequence[Allocation]) -> bool:
        return self.after(gone).without(shape) is not None


def blockers(shape: Gang, ledger: ClusterLedger) -> list[Allocation]:
    """The jobs that end first, by their estimates, and free enough capacity; all of them if it never is enough."""
    leaving = sorted(ledger.allocations, key=ends_at)
    return leaving[: _fewest(len(leaving), lambda count: ledger.fits_after(shape, leaving[:count]))]


def ends_at(item: Allocation) -> datetime:
    return item.ends_at or NEVER


def victims(head: Job, shape: Gang, ledger: ClusterLedger, policy: Policy) -> list[Job]:
    """The fewest, lowest-priority, youngest attempts whose capacity lets the head start; those leaving already
    count."""
    if not policy.preempt:
        return []
    leaving = [item for item in ledger.allocations if item.job.stop is not None]
    if ledger.fits_after(shape, leaving):
        return [item.job for item in leaving if item.job.stop == "preempt"]
    weaker = [item for item in ledger.allocations if item not in leaving and _must_yield(item, head, policy)]
    weaker.sort(key=lambda item: (item.job.priority, -item.since.timestamp()))
    count = _fewest(len(weaker), lambda count: ledger.fits_after(shape, [*leaving, *weaker[:count]]))
    if count > len(weaker):
        return []
    chosen = weaker[:count]
    for item in reversed(chosen[:-1]):  # spare those whose capacity the head does not need
        rest = [other for other in chosen if other is not item]
        chosen = rest if ledger.fits_after(shape, [*leaving, *rest]) else chosen
    return [item.job for item in chosen]


def _fewest(most: int, is_enough: Callable[[int], bool]) -> int:
    """The smallest count from 1 on that is enough, as all larger ones are; `most` + 1 if none is."""
    return bisect_left(range(1, most + 1), True, key=is_enough) + 1


def _must_yield(item: Allocation, head: Job, policy: Policy) -> bool:
    return item.job.state in _PREEMPTIBLE and points(item.job, item.since, policy) < head.priority
