"""Capacity for workers on hosts: the arithmetic below the scheduler."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from syncnorm.service.jobs.job import Job
from syncnorm.trainer.contract.plan import NodeCapacity


@dataclass(frozen=True)
class Gang:
    """Workers that start together. cpus and gpus are of one worker."""

    workers: int
    cpus: float
    gpus: float


def gang(job: Job, workers: int | None = None) -> Gang:
    """workers: None: as many as the job asks for."""
    return Gang(job.workers if workers is None else workers, float(job.cpus_per_worker), float(job.gpus_per_worker))


Hosts = tuple[tuple[float, float], ...]
"""(CPUs, GPUs) of each host."""


@dataclass(frozen=True)
class Capacity:
    """Free capacity by our own records, and as the cluster reports it.

    A gang has to fit both. The records never forget an attempt whose processes may still run; the report includes what
    others use, and on which hosts our workers really are.
    """

    ledger: Hosts
    report: Hosts

    @staticmethod
    def of(nodes: Sequence[NodeCapacity], *, whole: bool = False) -> Capacity:
        """whole: the empty cluster."""
        ledger = tuple((node.cpus, node.gpus) for node in nodes)
        return Capacity(ledger, ledger if whole else tuple((node.free_cpus, node.free_gpus) for node in nodes))

    def holding(self, gangs: Iterable[tuple[Gang, bool]]) -> Capacity:
        """The capacity without the gangs (with: whether the report includes them already). One that does not fit takes
        what there is."""
        ledger, report = self.ledger, self.report
        for shape, placed in sorted(gangs, key=lambda item: (-item[0].gpus, -item[0].cpus)):
            ledger = _take(ledger, shape)[0]
            report = report if placed else _take(report, shape)[0]
        return Capacity(ledger, report)

    def without(self, shape: Gang) -> Capacity | None:
        """The capacity that remains after the gang started; None if it does not fit whole."""
        ledger, left = _take(self.ledger, shape)
        report, left_over = _take(self.report, shape)
        return None if left or left_over else Capacity(ledger, report)

    def largest(self, shape: Gang) -> int:
        """How many workers of this kind fit now."""
        return min(sum(_fits(host, shape) for host in hosts) for hosts in (self.ledger, self.report))


def _take(hosts: Hosts, shape: Gang) -> tuple[Hosts, int]:
    """(hosts after as many workers as possible are placed, on as few hosts as possible; workers left over)."""
    left = shape.workers
    after = list(hosts)
    for index in sorted(range(len(hosts)), key=lambda i: -_fits(hosts[i], shape)):
        taken = min(left, _fits(hosts[index], shape))
        cpus, gpus = hosts[index]
        after[index] = (cpus - taken * shape.cpus, gpus - taken * shape.gpus)
        left -= taken
        if not left:
            break
    return tuple(after), left


def _fits(host: tuple[float, float], shape: Gang) -> int:
    by_cpu = int(host[0] // shape.cpus) if shape.cpus else shape.workers
    by_gpu = int(host[1] // shape.gpus) if shape.gpus else shape.workers
    return max(0, min(by_cpu, by_gpu, shape.workers))
