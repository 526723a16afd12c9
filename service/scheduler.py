"""Which waiting jobs start now. Pure: queue, attempts and hosts in, verdicts out.

A job starts whole or not at all: every worker must find room at once. Workers of attempts that are not released yet
keep their room, whatever Ray reports as free.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from service.jobs import Job
from trainer.plan import NodeCapacity


@dataclass(frozen=True)
class Gang:
    """Room that is taken all at once."""

    workers: int
    cpus: float
    gpus: float


@dataclass(frozen=True)
class Room:
    """Free CPUs and GPUs of each host."""

    hosts: tuple[tuple[float, float], ...]

    @staticmethod
    def of(nodes: Sequence[NodeCapacity], *, whole: bool = False) -> Room:
        """whole: as if nothing ran."""
        return Room(tuple((n.cpus, n.gpus) if whole else (n.free_cpus, n.free_gpus) for n in nodes))

    def without(self, gang: Gang) -> Room | None:
        """What is left after the gang moved in, packed on as few hosts as possible; None if it does not fit."""
        left = gang.workers
        hosts = sorted(self.hosts, key=lambda host: -_fits(host, gang))
        after = []
        for cpus, gpus in hosts:
            taken = min(left, _fits((cpus, gpus), gang))
            after.append((cpus - taken * gang.cpus, gpus - taken * gang.gpus))
            left -= taken
        return None if left else Room(tuple(after))


def _fits(host: tuple[float, float], gang: Gang) -> int:
    by_cpu = int(host[0] // gang.cpus) if gang.cpus else gang.workers
    by_gpu = int(host[1] // gang.gpus) if gang.gpus else gang.workers
    return max(0, min(by_cpu, by_gpu, gang.workers))


def gang(job: Job) -> Gang:
    return Gang(job.workers, float(job.cpus_per_worker), float(job.gpus_per_worker))


def schedule(queue: Iterable[Job], holding: Iterable[Job], nodes: Sequence[NodeCapacity], now: datetime) -> list[Job]:
    """The jobs to start now, in order of priority and then age; `holding` are those whose attempts have room."""
    room = Room.of(nodes, whole=True)
    for job in holding:
        room = room.without(gang(job)) or room
    starts = []
    for job in sorted(queue, key=lambda job: (-job.priority, job.queued_at, job.id)):
        if job.stop is not None or (job.not_before is not None and job.not_before > now):
            continue
        after = room.without(gang(job))
        if after is not None:
            starts.append(job)
            room = after
    return starts
