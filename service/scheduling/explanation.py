"""Why a job waits, runs or stopped: a reason code, numbers, the jobs ahead or in the way, and an estimate. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from syncnorm.service.jobs.export_summary import export_summary
from syncnorm.service.jobs.job import ACTIVE, Attempt, Job, JobState
from syncnorm.service.scheduling.growth import LEAST_SAVED_S, LEAST_TRAINED_S, SETTLED_S
from syncnorm.service.scheduling.schedule import Schedule
from syncnorm.trainer.contract.failure import advised
from syncnorm.trainer.contract.text import counted


@dataclass(frozen=True)
class Explanation:
    """code: one of CODES. shortfall: numbers of missing capacity. blockers: ids of jobs in the way."""

    code: str
    message: str
    shortfall: dict[str, float] = field(default_factory=dict)
    jobs_ahead: int = 0
    blockers: tuple[str, ...] = ()
    estimated_start: datetime | None = None


@dataclass(frozen=True)
class ServiceProblems:
    """Current troubles of the service.

    of_job: the error of this job's own step; failing_since, error: of ticks that fail as a whole; culprits: jobs whose
    steps fail.
    """

    of_job: str | None = None
    failing_since: datetime | None = None
    error: str = ""
    culprits: tuple[str, ...] = ()

    def explained(self, job: Job) -> Explanation | None:
        if self.of_job is not None:
            message = (
                f"The service can't handle this job: {self.of_job}. If that continues, the job fails with reason "
                "internal."
            )
            return Explanation("step_failing", message)
        if self.failing_since is None or job.state is not JobState.QUEUED:
            return None
        since = self.failing_since.isoformat(timespec="seconds")
        message = (
            f"The scheduler has failed since {since}: {self.error}. The job stays queued. Ask an operator to help."
        )
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
        message = f"The storage is unavailable, so launch and result are delayed; training continues: {storage_problem}"
        return Explanation("storage_unreachable", message)
    if job.state is JobState.QUEUED:
        return _queued(job, attempt, schedule, ahead)
    if job.state is JobState.STARTING:
        return _starting(attempt)
    if job.state is JobState.RUNNING:
        return _running(job, attempt, schedule)
    return _by_its_state(job)


def _by_its_state(job: Job) -> Explanation:
    stopped_to = "continue with more workers" if job.stop == "resize" else job.stop or "stop"
    texts = {
        JobState.STOPPING: ("stopping", f"The job stops after the current batch, with a checkpoint, to {stopped_to}."),
        JobState.FINALIZING: ("exporting", "Training is over; statistics, folding, export and certificate follow."),
        JobState.PAUSED: (
            "paused",
            f"Paused by {job.stop_by or 'a user'}. The job continues once you resume it.",
        ),
        JobState.SUCCEEDED: ("succeeded", _finished(job)),
        JobState.CANCELLED: ("cancelled", job.message or "The job was cancelled on request."),
    }
    if job.state in texts:
        return Explanation(*texts[job.state])
    said = advised(job.message, job.reason) if job.reason else job.message
    return Explanation("failed", f"{job.reason}: {said}")


def _finished(job: Job) -> str:
    export = export_summary(job)
    return f"The job is finished. {export.sentence}" if export and export.sentence else "The job is finished."


def _queued(job: Job, attempt: Attempt | None, schedule: Schedule | None, ahead: int) -> Explanation:
    if job.stop is not None:  # also while Ray is away: nothing has to start
        asked = f"A {job.stop} was requested by {job.stop_by}" if job.stop_by else f"A {job.stop} was requested"
        end = {"cancel": "cancelled", "pause": "paused"}.get(job.stop, "stopped")
        return Explanation("stop_requested", f"{asked}. The job does not start, and is {end} within seconds.")
    if schedule is None:
        return Explanation(
            "cluster_unreachable", "Ray is unreachable. The job stays queued and starts once Ray is back."
        )
    if wait := schedule.wait(job):
        return Explanation(wait.code, wait.message, wait.numbers, ahead, wait.blockers, wait.starts_at)
    if attempt is not None and attempt.released_at is None:
        return Explanation(
            "previous_attempt_leaving",
            f"Attempt {attempt.number} has ended, but its processes still run on the cluster.",
        )
    if ahead:
        return Explanation("queued_behind", f"{counted(ahead, 'job')} ahead in the queue.", jobs_ahead=ahead)
    return Explanation("starts_next", "There is capacity. The job starts with the next scheduling pass.")


def _running(job: Job, attempt: Attempt | None, schedule: Schedule | None) -> Explanation:
    if attempt is None or attempt.workers >= job.workers:
        return Explanation("training", "The job is training.")
    numbers = {"workers": float(attempt.workers), "asked_for": float(job.workers)}
    message = f"The job is training on {attempt.workers} of {job.workers} workers; "
    if schedule is None or job.id not in schedule.spare:
        return Explanation(
            "training", f"{message}there is no free capacity that is not already claimed by a queued job.", numbers
        )
    numbers["room_for"] = float(schedule.spare[job.id])
    message += (
        f"there is capacity for {schedule.spare[job.id]}. The job stops with a checkpoint and continues with them once "
        f"this has lasted {SETTLED_S:.0f} s and the attempt has trained {LEAST_TRAINED_S:.0f} s, if that saves "
        f"{LEAST_SAVED_S:.0f} s."
    )
    return Explanation("training", message, numbers)


def _starting(attempt: Attempt | None) -> Explanation:
    if attempt is None or attempt.submitted_at is None:
        return Explanation(
            "launch_waits", "Capacity is reserved; the attempt is being launched through MLflow and Ray."
        )
    return Explanation("workers_starting", "Ray is starting the workers; the first step follows within seconds.")
