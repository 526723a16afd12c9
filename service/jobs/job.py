"""Jobs and attempts as values, and the table of states they may move between."""

from __future__ import annotations

import os
import secrets
import threading
import time
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from syncnorm.service.jobs.actors import SERVICE, Actor
from syncnorm.service.jobs.instants import after
from syncnorm.service.jobs.stored_spec import StoredSpec
from syncnorm.trainer.contract.failure import FailureReason
from syncnorm.trainer.contract.protocol import Result, StopRequest
from syncnorm.trainer.contract.result_reader import read_result


class JobState(StrEnum):
    """Where a job is in its life. succeeded, failed and cancelled are final."""

    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    PAUSED = "paused"
    FINALIZING = "finalizing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


TERMINAL = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})
ACTIVE = frozenset({JobState.STARTING, JobState.RUNNING, JobState.FINALIZING, JobState.STOPPING})
"""States with an attempt under way."""

RUN_STATUS: dict[JobState, str] = {
    JobState.QUEUED: "SCHEDULED",
    JobState.PAUSED: "SCHEDULED",
    JobState.STARTING: "RUNNING",
    JobState.RUNNING: "RUNNING",
    JobState.FINALIZING: "RUNNING",
    JobState.STOPPING: "RUNNING",
    JobState.SUCCEEDED: "FINISHED",
    JobState.FAILED: "FAILED",
    JobState.CANCELLED: "KILLED",
}
"""The status of a job's MLflow run in each state."""

_S = JobState
ARROWS: dict[tuple[JobState, JobState], str] = {
    (_S.QUEUED, _S.STARTING): "The scheduler reserved capacity for every worker, and an attempt was recorded.",
    (_S.QUEUED, _S.PAUSED): "A user paused the job before it started.",
    (_S.QUEUED, _S.CANCELLED): "A user cancelled the job before it started.",
    (_S.QUEUED, _S.FAILED): "The deadline passed while the job waited for another attempt.",
    (_S.STARTING, _S.RUNNING): "The attempt reported that its workers are training.",
    (_S.STARTING, _S.FINALIZING): "The attempt reported that it exports. Its training was too short to be seen.",
    (_S.STARTING, _S.STOPPING): "A stop was requested before the workers came up.",
    (_S.STARTING, _S.SUCCEEDED): "The result file was there before any report of training.",
    (_S.STARTING, _S.QUEUED): "The attempt was lost or failed early, and another one may succeed.",
    (_S.STARTING, _S.FAILED): "The attempt failed before training, and another one would fail too.",
    (_S.RUNNING, _S.FINALIZING): "Training is over. Statistics, folding, export and certificate follow.",
    (_S.RUNNING, _S.STOPPING): "A stop was requested: cancel, pause, preemption, growth or deadline.",
    (_S.RUNNING, _S.SUCCEEDED): "The result file says succeeded, and the report of the export was missed.",
    (_S.RUNNING, _S.QUEUED): "The attempt was lost, failed or gave way. Another one resumes from its checkpoint.",
    (_S.RUNNING, _S.FAILED): "The attempt failed, and another one would fail too or is not allowed.",
    (_S.FINALIZING, _S.STOPPING): "A stop was requested during the export.",
    (_S.FINALIZING, _S.SUCCEEDED): "The result file with the right fence says succeeded.",
    (_S.FINALIZING, _S.QUEUED): "The attempt was lost while exporting. Another repeats it from the last checkpoint.",
    (_S.FINALIZING, _S.FAILED): "What follows training failed, or an export that the job requires.",
    (_S.STOPPING, _S.CANCELLED): "The attempt is over, and it was stopped to cancel the job.",
    (_S.STOPPING, _S.PAUSED): "The attempt is over, and it was stopped to pause the job.",
    (_S.STOPPING, _S.QUEUED): "The attempt is over. It was stopped for a job of higher priority, or to grow.",
    (_S.STOPPING, _S.FAILED): "The attempt is over, and it was stopped by the deadline or failed while stopping.",
    (_S.STOPPING, _S.SUCCEEDED): "The stop came too late: the job had already finished.",
    (_S.PAUSED, _S.QUEUED): "A user resumed the job.",
    (_S.PAUSED, _S.CANCELLED): "A user cancelled the job while it was paused.",
    (_S.FAILED, _S.QUEUED): "A user retried the job. It resumes from its last checkpoint.",
    (_S.CANCELLED, _S.QUEUED): "A user retried the job. It resumes from its last checkpoint.",
}
"""Every legal move, with its meaning. The store refuses any other."""


@dataclass(frozen=True)
class Job:
    """What a user submitted, with its state. `stop` is a request; `state` is what is true now."""

    id: str
    name: str
    project: str
    owner: str
    state: JobState
    priority: int
    labels: dict[str, str]
    norm: str
    spec: StoredSpec
    workers: int
    cpus_per_worker: int
    gpus_per_worker: int
    max_failures: int
    grace_s: float
    deadline_s: float | None
    created_at: datetime
    queued_at: datetime
    min_workers: int | None = None
    """Of an elastic job: an attempt may have as few as this many; None: always `workers`."""
    world_size: int | None = None
    """Workers of the latest attempt; None: none yet."""
    stop: StopRequest | None = None
    stop_at: datetime | None = None
    stop_by: str | None = None
    """Who asked for the latest cancel or pause."""
    reason: FailureReason | None = None
    message: str = ""
    attempt: int = 0
    """Number of the latest attempt; 0: none yet."""
    failures: int = 0
    stalled: int = 0
    """Failures since the last progress; sets how long the next attempt waits."""
    not_before: datetime | None = None
    progress: dict[str, Any] | None = None
    experiment_id: str | None = None
    run_id: str | None = None
    run_status: str | None = None
    """The status last given to the MLflow run."""
    model: dict[str, Any] | None = None
    export: dict[str, Any] | None = None
    """How the export of a succeeded job went; read by export_summary.py."""
    guarantees: dict[str, Any] | None = None
    """What the latest attempt has said that holds, as `syncnorm.trainer.contract.plan.Guarantees`."""
    started_at: datetime | None = None
    finished_at: datetime | None = None
    version: int = 1

    @property
    def is_terminal(self) -> bool:
        return self.state in TERMINAL

    @property
    def deadline_at(self) -> datetime | None:
        """None: there is no deadline, or the job has not started."""
        if self.deadline_s is None or self.started_at is None:
            return None
        return after(self.started_at, self.deadline_s)

    @property
    def least_workers(self) -> int:
        return self.min_workers or self.workers

    def size_within(self, free_workers: int) -> int:
        """How many workers an attempt gets if `room` fit: all, or for an elastic job as many whole groups of norm.group
        as fit, but at least min_workers; 0: it can't start."""
        if free_workers >= self.workers:
            return self.workers
        if self.min_workers is None:
            return 0
        group = self.spec.group
        size = free_workers if group is None else free_workers - free_workers % group
        return size if size >= self.least_workers else 0


@dataclass(frozen=True)
class Attempt:
    """One execution of a job on Ray. `id` is also the submission id there."""

    id: str
    job_id: str
    number: int
    fence: str
    created_at: datetime
    lease_expires_at: datetime
    workers: int = 1
    """Chosen when it started; fewer than the job asks for only if that is elastic."""
    session: str | None = None
    """The Ray session it was submitted to; another session does not know it."""
    resume_from: str | None = None
    resume_step: int = 0
    submitted_at: datetime | None = None
    heartbeat_at: datetime | None = None
    stop_sent_at: datetime | None = None
    """When Ray was asked to stop it, the last step of the stop ladder."""
    phase: str | None = None
    phases: dict[str, str] | None = None
    """When each phase was first reported."""
    step: int = 0
    result: dict[str, Any] | None = None
    outcome: str | None = None
    """succeeded, failed, stopped or lost; None while it runs."""
    reason: FailureReason | None = None
    message: str = ""
    placement: list[dict[str, Any]] | None = None
    """Where each rank runs, as `syncnorm.trainer.contract.protocol.RankPlacement`; None until all ranks have come."""
    ended_at: datetime | None = None
    released_at: datetime | None = None
    """When Ray confirmed that none of its processes runs any more, so that its capacity is free."""


@dataclass(frozen=True)
class NewEvent:
    kind: str
    message: str
    data: dict[str, Any] | None = None
    by: Actor = SERVICE


def stored_result(attempt: Attempt) -> Result | None:
    """The result the attempt reported itself, also if another version stored it."""
    return None if attempt.result is None else read_result(attempt.result, attempt.fence)


_DIGITS = "0123456789abcdefghjkmnpqrstvwxyz"
_last_number = 0
_number_lock = threading.Lock()


def new_job_id() -> str:
    """`job_` and 26 characters, sortable by time of creation (ULID: 48 bit milliseconds, 80 bit random).

    Those made by one process sort in the order they were made in, within a millisecond and if its clock is set back.
    """
    global _last_number  # noqa: PLW0603
    with _number_lock:
        number = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10))
        _last_number = number = max(number, _last_number + 1 + int.from_bytes(os.urandom(4)))
    return "job_" + "".join(_DIGITS[number >> shift & 31] for shift in range(125, -1, -5))


def new_fence() -> str:
    return secrets.token_hex(16)
