"""What users may ask of a job in each state, and what it changes. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from service.jobs import Job, JobState, NewEvent

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


@dataclass(frozen=True)
class Change:
    """An update of the job row. Stopping is a request, carried out by the reconciler; going on is done at once."""

    to: JobState
    changes: Mapping[str, Any] = field(default_factory=dict)
    event: NewEvent = field(default_factory=lambda: NewEvent("changed", ""))


def ask(job: Job, verb: Verb, now: datetime) -> Change | None:
    """The change that carries `verb` out; None: it was asked for before, and nothing changes.

    Raises: ValueError if the job's state does not allow it.
    """
    if verb == "pause" and job.stop == "pause":
        return None
    if verb not in ALLOWED[job.state] or (verb == "pause" and job.stop in ("cancel", "deadline")):
        raise ValueError(f"a job that is {job.state} can't be asked to {verb}")
    if verb in ("cancel", "pause"):
        if job.stop == verb:
            return None
        return Change(job.state, {"stop": verb, "stop_at": job.stop_at or now}, NewEvent(f"{verb}_requested", ""))
    if verb == "resume":
        again = {"queued_at": now, "not_before": None, "message": ""}
        return Change(JobState.QUEUED, again, NewEvent(JobState.QUEUED, "Resumed."))
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
    return Change(JobState.QUEUED, changes, NewEvent(JobState.QUEUED, "Retried; goes on from its last checkpoint."))
