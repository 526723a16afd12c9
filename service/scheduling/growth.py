"""Which running elastic job continues with more workers once there is capacity: it costs a checkpoint and a start.

One at a time, and only while no queued job claims the capacity. The capacity must have lasted, the attempt must have
trained for a while, and the time saved must be worth the start if the job scales. So no job is interrupted more than
once in LEAST_TRAINED_S.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from syncnorm.service.jobs.job import Job, JobState
from syncnorm.service.scheduling.ordering import rank
from syncnorm.service.scheduling.schedule import Allocation, Policy, SpareWorkers

SETTLED_S = 60.0
"""How long capacity must have been free: several starts of a job, so that a gap between two jobs does not count."""
LEAST_TRAINED_S = 600.0
"""How long an attempt trains before it is interrupted: a start takes some 15 s, which is 2.5 % of that."""
LEAST_SAVED_S = 60.0
"""How much sooner the job must end, by the speed of its steps, if it scales: four starts."""


@dataclass(frozen=True)
class Growth:
    """A job to stop and continue with more workers.

    settled_s, trained_s: how long the capacity was free, and how long the job has trained. saved_s: how much sooner it
    would end; None: unknown.
    """

    job: Job
    workers: int
    to: int
    settled_s: float
    trained_s: float
    saved_s: float | None

    @property
    def numbers(self) -> dict[str, float]:
        about = {"workers": self.workers, "to": self.to, "settled_s": self.settled_s, "trained_s": self.trained_s}
        return about | ({} if self.saved_s is None else {"saved_s": self.saved_s})


@dataclass(frozen=True)
class GrowthTimer:
    """Since when capacity has been free for each job that could grow. Forgotten when it is gone, and at a restart."""

    since: Mapping[str, datetime] = field(default_factory=dict)

    def after(self, spare: SpareWorkers, now: datetime) -> GrowthTimer:
        """spare: what the latest plan has found."""
        return replace(self, since={name: self.since.get(name, now) for name in spare})

    def due(
        self, spare: SpareWorkers, allocations: Sequence[Allocation], now: datetime, policy: Policy
    ) -> Growth | None:
        """The job to grow now: of those that may, the first in the queue."""
        found = [self._growth(item, spare[item.job.id], now) for item in allocations if item.job.id in spare]
        ready = [growth for growth in found if growth is not None]
        return min(ready, key=lambda one: rank(one.job.priority, one.job.queued_at, policy), default=None)

    def _growth(self, item: Allocation, to: int, now: datetime) -> Growth | None:
        workers = item.shape.workers
        if item.trains_since is None:
            return None
        settled_s = (now - self.since[item.job.id]).total_seconds()
        trained_s = (now - item.trains_since).total_seconds()
        left_s = None if item.ends_at is None else (item.ends_at - now).total_seconds()
        saved_s = None if left_s is None else left_s * (1 - workers / to)
        is_worth_it = saved_s is None or saved_s >= LEAST_SAVED_S
        if settled_s < SETTLED_S or trained_s < LEAST_TRAINED_S or not is_worth_it:
            return None
        return Growth(item.job, workers, to, settled_s, trained_s, saved_s)


def can_grow(item: Allocation) -> bool:
    """Whether it trains on fewer workers than it asks for, and no stop was requested."""
    return item.job.state is JobState.RUNNING and item.job.stop is None and item.shape.workers < item.job.workers
