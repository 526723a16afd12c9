"""Input and output of the scheduler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from syncnorm.service.jobs.job import Job
from syncnorm.service.scheduling.capacity import Gang, gang


@dataclass(frozen=True)
class Policy:
    """How the cluster is shared. max_running, max_gpus: limits of one owner; None: no limit."""

    ageing_s: float = 300.0
    share_points: float = 20.0
    """Points an owner loses for using the whole cluster; half of it costs half."""
    max_running: int | None = None
    max_gpus: int | None = None
    preempt: bool = True
    backfill_depth: int = 200
    """Jobs considered after the first one that does not fit."""


@dataclass(frozen=True)
class Allocation:
    """A job whose attempt holds capacity. placed: the cluster's report includes its workers."""

    job: Job
    since: datetime
    placed: bool
    ends_at: datetime | None = None
    """Estimated end; None: unknown."""
    workers: int | None = None
    """Workers of the attempt; None: as many as the job asks for."""
    trains_since: datetime | None = None

    @property
    def shape(self) -> Gang:
        return gang(self.job, self.workers)


@dataclass(frozen=True)
class WaitReason:
    """Why a job does not start now. numbers: behind the reason."""

    code: str
    message: str
    numbers: dict[str, float] = field(default_factory=dict)
    blockers: tuple[str, ...] = ()
    starts_at: datetime | None = None
    """Estimated start; None: unknown."""


SpareWorkers = Mapping[str, int]
"""How many workers each running elastic job could continue with, more than it has and not claimed by a queued job."""


@dataclass(frozen=True)
class Schedule:
    starts: tuple[Job, ...]
    preempts: tuple[Job, ...]
    waits: dict[str, WaitReason]
    """For every job that was considered; later ones are missing."""
    owners: dict[str, WaitReason]
    """Owners whose jobs may not start, and why."""
    sizes: Mapping[str, int]
    """Workers of each job that starts; fewer than it asks for only if it is elastic."""
    spare: SpareWorkers = field(default_factory=dict)
    faults: Mapping[str, Exception] = field(default_factory=dict)
    """Jobs that were left out of the plan because their numbers raised an error."""

    def wait(self, job: Job) -> WaitReason | None:
        """Why a job waits; None if it was not considered."""
        return self.waits.get(job.id) or self.owners.get(job.owner)

    def preempts_for(self, leaving: Job) -> str:
        """The id of the job for which one of `preempts` leaves."""
        waiting = (name for name, wait in self.waits.items() if wait.code == "waiting_for_preemption")
        return next(name for name in waiting if leaving.id in self.waits[name].blockers)
