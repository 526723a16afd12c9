"""The waiting jobs in memory, by owner, kept up to date by their versions.

Loading ten thousand jobs for every pass takes longer than all the rest of it. So a pass reads ids and versions, and
only what changed is loaded in full. A stale entry does no harm: every move is guarded by the version.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Collection, Mapping
from heapq import merge
from itertools import islice
from typing import Protocol

from syncnorm.service.jobs.job import Job, JobState
from syncnorm.service.scheduling.ordering import QueueEntry, QueuesByOwner, queue_entry
from syncnorm.service.scheduling.schedule import Policy
from syncnorm.service.store.rows import Faults


class Source(Protocol):
    """The part of the store that is used."""

    def versions(self, state: JobState) -> Mapping[str, int]: ...

    def jobs(self, ids: Collection[str], faults: Faults | None = None) -> list[Job]: ...


class JobQueue:
    """A mirror of the queued jobs."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._jobs: dict[str, Job] = {}
        self._versions: dict[str, int] = {}
        self._queues: dict[str, list[QueueEntry]] = defaultdict(list)
        self.unreadable: Faults = {}
        """Waiting jobs whose rows can't be read; they are in no line."""

    def refresh(self, source: Source) -> None:
        """Update it to the state of the store."""
        versions = source.versions(JobState.QUEUED)
        known = self._versions
        for job_id in [job_id for job_id in known if job_id not in versions]:
            self._remove(job_id)
        changed = [job_id for job_id, version in versions.items() if known.get(job_id) != version]
        self.unreadable = {}
        for job in source.jobs(changed, self.unreadable):
            self.note(job)

    def note(self, job: Job) -> None:
        """Update one job."""
        self._remove(job.id)
        if job.state is not JobState.QUEUED:
            return
        self._jobs[job.id] = job
        self._versions[job.id] = job.version
        insort(self._queues[job.owner], queue_entry(job, self._policy))

    def queues(self) -> QueuesByOwner:
        """The lines, valid until the next change."""
        return self._queues

    def front(self, most: int, owner: str | None = None) -> list[tuple[Job, int]]:
        """The first jobs of all lines or of one owner's, each with the number of jobs that go before it.

        Any thread may call it. A change at the same moment may be missing.
        """
        queues = tuple(self._queues.values()) if owner is None else (self._queues.get(owner, []),)
        heads = merge(*(queue[:most] for queue in queues), key=_keys)
        return [(job, self.ahead(job)) for *_, job in islice(heads, most)]

    def ahead(self, job: Job) -> int:
        """How many waiting jobs go before this one. Any thread may call it."""
        mine = _keys(queue_entry(job, self._policy))
        # In copies, because a line may get shorter while one searches in it.
        return sum(bisect_left(queue[:], mine, key=_keys) for queue in tuple(self._queues.values()))

    def _remove(self, job_id: str) -> None:
        job = self._jobs.pop(job_id, None)
        if job is None:
            return
        del self._versions[job_id]
        queue = self._queues[job.owner]
        del queue[bisect_left(queue, queue_entry(job, self._policy))]
        if not queue:
            del self._queues[job.owner]


def _keys(entry: QueueEntry) -> tuple[float, str]:
    return entry[:2]
