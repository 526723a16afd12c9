"""What goes into a plan of the scheduler, and what comes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from syncnorm.service.jobs.job import Job
from syncnorm.service.scheduling.capacity import Gang, gang


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
class Allocation:
    """A job whose attempt has room. placed: its workers show up in what the cluster reports as used."""

    job: Job
    since: datetime
    placed: bool
    ends_at: datetime | None = None
    """Estimate; None: nobody knows."""
    workers: int | None = None
    """Of the attempt; None: all that the job asks for."""
    trains_since: datetime | None = None

    @property
    def shape(self) -> Gang:
        return gang(self.job, self.workers)


@dataclass(frozen=True)
class WaitReason:
    """Why a job does not start now. numbers: what it would take."""

    code: str
    message: str
    numbers: dict[str, float] = field(default_factory=dict)
    blockers: tuple[str, ...] = ()
    starts_at: datetime | None = None
    """Estimate for the start; None: nobody knows."""


SpareWorkers = Mapping[str, int]
"""How many workers each running elastic job could go on with, more than it has; that nobody waits for."""


@dataclass(frozen=True)
class Schedule:
    starts: tuple[Job, ...]
    preempts: tuple[Job, ...]
    waits: dict[str, WaitReason]
    """For every job that was looked at; those behind are not."""
    owners: dict[str, WaitReason]
    """Owners none of whose jobs may start, and why."""
    sizes: Mapping[str, int]
    """Workers of each job that starts; fewer than it asks for only if it is elastic."""
    spare: SpareWorkers = field(default_factory=dict)
    faults: Mapping[str, Exception] = field(default_factory=dict)
    """Jobs whose numbers the plan can't be made with, so that it is made without them."""

    def wait(self, job: Job) -> WaitReason | None:
        """Why a job waits, as far as it was looked at."""
        return self.waits.get(job.id) or self.owners.get(job.owner)
