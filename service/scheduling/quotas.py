"""What each owner uses of the cluster, how that lowers their place in the queue, and how much more they may use."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from syncnorm.service.jobs.job import Job
from syncnorm.service.scheduling.capacity import Gang
from syncnorm.service.scheduling.schedule import Allocation, Policy, WaitReason
from syncnorm.trainer.contract.plan import NodeCapacity
from syncnorm.trainer.contract.text import counted


class Quotas:
    """Usage of each owner; grows with every job that is picked."""

    def __init__(self, allocations: Iterable[Allocation], nodes: Sequence[NodeCapacity], policy: Policy) -> None:
        self._policy = policy
        self._cpus = sum(node.cpus for node in nodes) or 1.0
        self._gpus = sum(node.gpus for node in nodes) or 1.0
        self._share: dict[str, float] = defaultdict(float)
        self._running: dict[str, int] = defaultdict(int)
        self._gpus_of: dict[str, float] = defaultdict(float)
        for item in allocations:
            self.charge(item.job, item.shape)

    def charge(self, job: Job, shape: Gang) -> None:
        """Dominant share (Ghodsi et al. 2011): the larger of the owner's shares of CPUs and GPUs."""
        cpus, gpus = shape.workers * shape.cpus, shape.workers * shape.gpus
        self._share[job.owner] += max(cpus / self._cpus, gpus / self._gpus if gpus else 0.0)
        self._running[job.owner] += 1
        self._gpus_of[job.owner] += gpus

    def penalty(self, owner: str) -> float:
        """The penalty for the owner's share, in the unit of ranks."""
        return self._share[owner] * self._policy.share_points * self._policy.ageing_s

    def too_many_running(self, owner: str) -> WaitReason | None:
        running, most = self._running[owner], self._policy.max_running
        if most is None or running < most:
            return None
        numbers = {"running": float(running), "limit": float(most)}
        has = f"{owner} has {counted(running, 'job')} running; the limit is {most}."
        message = f"{has} The job can start once fewer are running."
        return WaitReason("quota_running", message, numbers)

    def too_many_gpus(self, job: Job) -> WaitReason | None:
        gpus, limit = self._gpus_of[job.owner], self._policy.max_gpus
        if limit is None or job.size_within(self.workers_left(job)):
            return None
        wanted = float(job.least_workers * job.gpus_per_worker)
        numbers = {"in_use": gpus, "wanted": wanted, "limit": float(limit)}
        message = f"{job.owner} uses {gpus:g} GPUs and needs {wanted:g} more for this job; the limit is {limit}."
        return WaitReason("quota_gpus", message, numbers)

    def workers_left(self, job: Job) -> int:
        """Workers of this job that its owner may still have."""
        if self._policy.max_gpus is None or not job.gpus_per_worker:
            return job.workers
        return max(0, int((self._policy.max_gpus - self._gpus_of[job.owner]) // job.gpus_per_worker))
