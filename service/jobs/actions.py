"""The requests that users may make in each state of a job, and the change each one makes. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from syncnorm.service.jobs.actors import SERVICE, Actor
from syncnorm.service.jobs.job import Job, JobState, NewEvent

Verb = Literal["cancel", "pause", "resume", "retry", "delete"]

ALLOWED: dict[JobState, tuple[Verb, ...]] = {
    JobState.QUEUED: ("cancel", "pause"),
    JobState.STARTING: ("cancel", "pause"),
    JobState.RUNNING: ("cancel", "pause"),
    JobState.FINALIZING: ("cancel",),
    JobState.STOPPING: ("cancel",),
    JobState.PAUSED: ("cancel", "resume"),
    JobState.SUCCEEDED: ("delete",),
    JobState.FAILED: ("retry", "delete"),
    JobState.CANCELLED: ("retry", "delete"),
}
CHANGEABLE_LIMITS = (JobState.QUEUED, JobState.PAUSED, JobState.FAILED)
"""States in which the limits of a job may change: no attempt runs under the old ones."""
_UNDER_WAY = (JobState.QUEUED, JobState.STARTING, JobState.RUNNING, JobState.FINALIZING)


@dataclass(frozen=True)
class Change:
    """An update of the job row. Stopping is a request that the reconciler carries out; resuming takes effect at
    once."""

    to: JobState
    changes: Mapping[str, Any] = field(default_factory=dict)
    event: NewEvent = field(default_factory=lambda: NewEvent("changed", ""))


def allowed(job: Job) -> list[Verb]:
    """The verbs that are allowed now. A cancel or a deadline that is being carried out can't be undone."""
    ends = job.stop in ("cancel", "deadline")
    return [verb for verb in ALLOWED[job.state] if not (ends and verb in ("pause", "resume"))]


def apply_verb(job: Job, verb: Verb, now: datetime, by: Actor = SERVICE) -> Change | None:
    """The change that carries `verb` out; None: the job is so already, or on its way, and nothing changes.

    Raises: ValueError if the job's state does not allow it.
    """
    if _is_so(job, verb):
        return None
    if verb not in allowed(job):
        raise ValueError(f"a job that is {job.state} can't be asked to {verb}")
    if verb in ("cancel", "pause"):
        stop = {"stop": verb, "stop_at": job.stop_at or now, "stop_by": str(by)}
        return Change(job.state, stop, NewEvent(f"{verb}_requested", f"Requested by {by}.", by=by))
    if verb == "resume":
        requeued = {"queued_at": now, "not_before": None, "message": ""}
        return Change(JobState.QUEUED, requeued, NewEvent(JobState.QUEUED, f"Resumed by {by}.", by=by))
    changes: dict[str, Any] = {
        "queued_at": now,
        "not_before": None,
        "message": "",
        "reason": None,
        "failures": 0,
        "stalled": 0,
        "started_at": None,
        "finished_at": None,
        "model": None,
    }
    message = f"Retried by {by}. The job continues from its last checkpoint, and its deadline starts again."
    if job.deadline_s is None:
        message = f"Retried by {by}. The job continues from its last checkpoint."
    return Change(JobState.QUEUED, changes, NewEvent(JobState.QUEUED, message, by=by))


def _is_so(job: Job, verb: Verb) -> bool:
    """Whether the job already is in the state that `verb` leads to, or on its way. A job that never stopped can't be
    resumed, and its owner should get an error."""
    if verb == "cancel":
        return job.state is JobState.CANCELLED or job.stop == "cancel"
    if verb == "pause":
        return job.stop == "pause" or (job.state is JobState.PAUSED and job.stop is None)
    was_put_back = job.queued_at > job.created_at
    return was_put_back and job.state in _UNDER_WAY and job.stop in (None, "preempt", "resize")


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The values that `after` changes, as they were and as they are."""
    changed = [name for name in after if before.get(name) != after[name]]
    return {name: before.get(name) for name in changed}, {name: after[name] for name in changed}
