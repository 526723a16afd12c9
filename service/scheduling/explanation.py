"""Why a job waits or stopped: one reason code, numbers, who is ahead or in the way, and an estimate. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from syncnorm.service.jobs.job import ACTIVE, Attempt, Job, JobState
from syncnorm.service.scheduling.growth import LEAST_SAVED_S, LEAST_TRAINED_S, SETTLED_S
from syncnorm.service.scheduling.schedule import Schedule
from syncnorm.trainer.contract.failure import advised


@dataclass(frozen=True)
class Explanation:
    """code: one of CODES. shortfall: numbers of what is missing. blockers: ids of jobs in the way."""

    code: str
    message: str
    shortfall: dict[str, float] = field(default_factory=dict)
    jobs_ahead: int = 0
    blockers: tuple[str, ...] = ()
    estimated_start: datetime | None = None


@dataclass(frozen=True)
class ServiceProblems:
    """What the service can't do just now. of_job: the error of this job's own step; failing_since, error: of ticks that
    fail as a whole; culprits: jobs whose steps fail."""

    of_job: str | None = None
    failing_since: datetime | None = None
    error: str = ""
    culprits: tuple[str, ...] = ()

    def explained(self, job: Job) -> Explanation | None:
        if self.of_job is not None:
            message = f"The service can't handle this job: {self.of_job}. If that goes on, the job fails as `internal`."
            return Explanation("step_failing", message)
        if self.failing_since is None or job.state is not JobState.QUEUED:
            return None
        since = self.failing_since.isoformat(timespec="seconds")
        message = f"The scheduler has failed since {since}: {self.error}. The job is kept, and an operator is needed."
        return Explanation("scheduler_failing", message, blockers=self.culprits)


CODES = (
    *("stop_requested", "backoff", "never_fits", "quota_running", "quota_gpus", "no_room", "waiting_for_preemption"),
    *("held_for_job_ahead", "no_room_behind", "queued_behind", "starts_next", "previous_attempt_leaving"),
    *(
        "cluster_unreachable",
        "scheduler_failing",
        "step_failing",
        "storage_unreachable",
        "launch_waits",
        "workers_starting",
        "training",
        "exporting",
        "stopping",
        "paused",
    ),
    *("succeeded", "failed", "cancelled"),
)


def explain(
    job: Job,
    attempt: Attempt | None,
    schedule: Schedule | None,
    ahead: int,
    storage_problem: str | None = None,
    problems: ServiceProblems = ServiceProblems(),
) -> Explanation:
    """schedule: the scheduler's last one; None while the cluster can't be reached. ahead: queued jobs that go first.

    storage_problem: why the storage can't be used just now. problems: of the service itself.
    """
    if not job.is_terminal and (said := problems.explained(job)) is not None:
        return said
    if storage_problem is not None and job.state in ACTIVE:
        return Explanation(
            "storage_unreachable", f"Its launch or its result waits, what runs goes on: {storage_problem}"
        )
    if job.state is JobState.QUEUED:
        return _queued(job, attempt, schedule, ahead)
    if job.state is JobState.STARTING:
        return _starting(attempt)
    if job.state is JobState.RUNNING:
        return _running(job, attempt, schedule)
    return _by_its_state(job)


def _by_its_state(job: Job) -> Explanation:
    stopped_to = "go on with more workers" if job.stop == "resize" else job.stop or "stop"
    texts = {
        JobState.STOPPING: ("stopping", f"It ends at the next batch, with a checkpoint, to {stopped_to}."),
        JobState.FINALIZING: ("exporting", "Training is over; statistics, folding, export and certificate follow."),
        JobState.PAUSED: (
            "paused",
            f"Paused by {job.stop_by or 'somebody'}. It continues once it is resumed.",
        ),
        JobState.SUCCEEDED: ("succeeded", "It is finished."),
        JobState.CANCELLED: ("cancelled", job.message or "It was cancelled on request."),
    }
    if job.state in texts:
        return Explanation(*texts[job.state])
    said = advised(job.message, job.reason) if job.reason else job.message
    return Explanation("failed", f"{job.reason}: {said}")


def _queued(job: Job, attempt: Attempt | None, schedule: Schedule | None, ahead: int) -> Explanation:
    if schedule is None:
        return Explanation("cluster_unreachable", "Ray can't be reached; the job is kept and starts when it can.")
    if wait := schedule.wait(job):
        return Explanation(wait.code, wait.message, wait.numbers, ahead, wait.blockers, wait.starts_at)
    if attempt is not None and attempt.released_at is None:
        return Explanation("previous_attempt_leaving", f"Attempt {attempt.number} still has to leave the cluster.")
    if ahead:
        return Explanation("queued_behind", f"{ahead} jobs are ahead of it.", jobs_ahead=ahead)
    return Explanation("starts_next", "There is room; it starts with the next look at the queue.")


def _running(job: Job, attempt: Attempt | None, schedule: Schedule | None) -> Explanation:
    if attempt is None or attempt.workers >= job.workers:
        return Explanation("training", "The job is training.")
    numbers = {"workers": float(attempt.workers), "asked_for": float(job.workers)}
    message = f"It trains on {attempt.workers} of {job.workers} workers; "
    if schedule is None or job.id not in schedule.spare:
        return Explanation("training", f"{message}there is no room for more that nobody waits for.", numbers)
    numbers["room_for"] = float(schedule.spare[job.id])
    message += (
        f"there is room for {schedule.spare[job.id]}. It stops for a moment and goes on with them once that has lasted "
        f"{SETTLED_S:.0f} s and it has trained {LEAST_TRAINED_S:.0f} s, if it ends {LEAST_SAVED_S:.0f} s sooner."
    )
    return Explanation("training", message, numbers)


def _starting(attempt: Attempt | None) -> Explanation:
    if attempt is None or attempt.submitted_at is None:
        return Explanation("launch_waits", "Its room is reserved; it is being handed to MLflow and Ray.")
    return Explanation("workers_starting", "Ray starts its workers; the first step follows in some seconds.")
