"""What becomes of a job, given what was observed of it. Pure: no clock, no database, no network.

When an attempt is over is decided in attempt_ending.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from syncnorm.service.jobs.attempt_ending import (
    Ending,
    Observation,
    RayStatus,
    Rules,
    ending_of,
)
from syncnorm.service.jobs.export_summary import summary_of_result
from syncnorm.service.jobs.instants import after
from syncnorm.service.jobs.job import ACTIVE, Attempt, Job, JobState
from syncnorm.trainer.contract.failure import FailureReason, may_be_retried


@dataclass(frozen=True)
class Move:
    """A change of state, guarded by the state the decision was made on."""

    to: JobState
    changes: Mapping[str, Any] = field(default_factory=dict)
    attempt_changes: Mapping[str, Any] = field(default_factory=dict)
    message: str = ""


@dataclass(frozen=True)
class SubmitToRay:
    """Submit the attempt to Ray, under its own id; harmless when repeated."""


@dataclass(frozen=True)
class StopOnRay:
    """Have Ray stop the processes (SIGTERM, then SIGKILL): the last step of the stop ladder."""

    reason: FailureReason | None
    message: str


_DOUBLINGS = 30
"""Largest number of doublings of the wait before the next attempt."""

Decision = Move | SubmitToRay | StopOnRay | None


def decide(job: Job, attempt: Attempt | None, observation: Observation, rules: Rules) -> Decision:
    """The next step for a job; None: nothing to do now."""
    if job.state in ACTIVE:
        assert attempt is not None, f"job {job.id} is {job.state} without an attempt"
        return _under_way(job, attempt, observation, rules)
    if job.state is JobState.QUEUED:
        return _waiting(job, observation)
    if job.state is JobState.PAUSED and job.stop == "cancel":
        return _cancelled(f"Cancelled{_by_whom(job)} while it was paused.", observation.now)
    return None


def _under_way(job: Job, attempt: Attempt, observation: Observation, rules: Rules) -> Decision:
    if job.stop is not None and job.state is not JobState.STOPPING:
        return Move(JobState.STOPPING, message=f"Stopping to {job.stop}.")
    if ending := ending_of(job, attempt, observation, rules):
        return _settle(job, attempt, ending, observation.now, rules)
    if job.state is JobState.STOPPING:
        return _escalate(job, attempt, observation)
    if _deadline_passed(job, observation.now):
        return Move(
            JobState.STOPPING,
            {"stop": "deadline", "stop_at": observation.now},
            message="limits.deadline_s has passed; the job stops with a checkpoint.",
        )
    return _forward(job, attempt, observation, rules)


def _waiting(job: Job, observation: Observation) -> Decision:
    if job.stop == "cancel":
        return _cancelled(f"Cancelled{_by_whom(job)} before it started.", observation.now)
    if job.stop == "pause":
        return Move(
            JobState.PAUSED, {"stop": None, "stop_at": None}, message=f"Paused{_by_whom(job)} before it started."
        )
    if _deadline_passed(job, observation.now):
        return _failed(
            FailureReason.DEADLINE, f"limits.deadline_s of {job.deadline_s:g} s has passed.", observation.now
        )
    return None


def refused(job: Job, why: str, now: datetime) -> Move:
    """Ray or MLflow refused the launch of this job, and would refuse it again."""
    reason = FailureReason.CANCELLED_BY_USER if job.stop == "cancel" else FailureReason.INTERNAL
    closing = {"outcome": "failed", "reason": reason, "message": why, "ended_at": now}
    move = _cancelled(why, now) if job.stop == "cancel" else _failed(reason, why, now)
    return Move(move.to, {"stop": None, "stop_at": None, **move.changes}, closing, move.message)


def _forward(job: Job, attempt: Attempt, observation: Observation, rules: Rules) -> Decision:
    if attempt.submitted_at is None:
        if overdue := _overdue_start(job, attempt, observation, rules):
            return overdue
        may_launch = observation.session is not None and attempt.session in (None, observation.session)
        return SubmitToRay() if may_launch and attempt.stop_sent_at is None else None
    if attempt.phase in ("finalizing", "done") and job.state is not JobState.FINALIZING:
        return Move(
            JobState.FINALIZING, _first_start(job, observation.now), message="Training is over; the export has begun."
        )
    if attempt.phase == "training" and job.state is JobState.STARTING:
        return Move(JobState.RUNNING, _first_start(job, observation.now), message="The workers are training.")
    return _overdue_start(job, attempt, observation, rules)


def _overdue_start(job: Job, attempt: Attempt, observation: Observation, rules: Rules) -> StopOnRay | None:
    """Also ends an attempt that can't be launched: it must not hold its capacity for ever."""
    waited = (observation.now - attempt.created_at).total_seconds()
    if job.state is not JobState.STARTING or waited <= rules.startup_timeout_s or _stop_is_sent(attempt, observation):
        return None
    if observation.session is None:
        return None  # no other job could use the capacity
    what = "could not be launched through MLflow and Ray" if attempt.submitted_at is None else "did not begin to train"
    return StopOnRay(FailureReason.STARTUP_TIMEOUT, f"The workers {what} within {waited:.0f} s.")


def _stop_is_sent(attempt: Attempt, observation: Observation) -> bool:
    """Whether Ray was asked to stop it, and need not be asked again: it may take a stop, and not carry it out."""
    if attempt.stop_sent_at is None:
        return False
    alive = observation.ray in (RayStatus.WAITING, RayStatus.RUNNING)
    return not alive or observation.now < after(attempt.stop_sent_at, STOP_AGAIN_S)


def _escalate(job: Job, attempt: Attempt, observation: Observation) -> Decision:
    """After grace_s for a last checkpoint, the processes are stopped."""
    grace_over = observation.now >= after(job.stop_at or attempt.created_at, job.grace_s)
    nobody_listens = attempt.heartbeat_at is None
    if _stop_is_sent(attempt, observation) or observation.ray is RayStatus.UNREACHABLE:
        return None
    if nobody_listens:
        return StopOnRay(_STOPPED.get(job.stop or ""), "Stopped before its workers were up.")
    if grace_over:
        return StopOnRay(
            _STOPPED.get(job.stop or ""),
            f"No checkpoint within limits.grace_s of {job.grace_s:g} s, so its processes were ended.",
        )
    return None


STOP_AGAIN_S = 30.0
"""Ray gives a process 3 s between SIGTERM and SIGKILL."""
_STOPPED = {
    "cancel": FailureReason.CANCELLED_BY_USER,
    "preempt": FailureReason.PREEMPTED,
    "deadline": FailureReason.DEADLINE,
}
"""The reason of an attempt that had to be stopped on Ray."""


def _settle(job: Job, attempt: Attempt, ending: Ending, now: datetime, rules: Rules) -> Move:
    closing: dict[str, Any] = {
        "outcome": ending.outcome,
        "reason": ending.reason,
        "message": ending.message,
        "ended_at": now,
    }
    if ending.result is not None:
        closing |= {"result": ending.result.model_dump(mode="json"), "step": max(attempt.step, ending.result.step)}
    move = _outcome(job, attempt, ending, now, rules)
    return Move(move.to, {"stop": None, "stop_at": None, **move.changes}, closing, move.message)


def _outcome(job: Job, attempt: Attempt, ending: Ending, now: datetime, rules: Rules) -> Move:
    if ending.outcome == "succeeded" and ending.result is not None:
        model = ending.result.model.model_dump(mode="json") if ending.result.model else None
        export = summary_of_result(ending.result)
        changes = {
            "model": model,
            "export": vars(export) if export else None,
            "finished_at": now,
            "reason": None,
            "message": "",
            **_first_start(job, now),
        }
        said = f"Succeeded. {export.sentence}" if export and export.sentence else "Succeeded."
        return Move(JobState.SUCCEEDED, changes, message=said)
    if job.stop == "cancel":
        return _cancelled(_cancelled_at(job, attempt, ending), now)
    if job.stop == "deadline":
        return _failed(FailureReason.DEADLINE, f"limits.deadline_s of {job.deadline_s or 0:g} s has passed.", now)
    if ending.outcome == "stopped" or (ending.outcome == "lost" and job.stop is not None):
        if job.stop == "pause":
            return Move(JobState.PAUSED, message=f"Paused{_by_whom(job)} at step {attempt.step}.")
        why = (
            "Stopped to continue with more workers" if job.stop == "resize" else "Preempted by a job of higher priority"
        )
        return Move(JobState.QUEUED, message=f"{why}; it will continue from its checkpoint.")
    return _after_failure(job, attempt, ending, now, rules)


def _after_failure(job: Job, attempt: Attempt, ending: Ending, now: datetime, rules: Rules) -> Move:
    reason = ending.reason or FailureReason.INTERNAL
    failures = job.failures + ending.counts
    if not may_be_retried(reason, outage=ending.outage) or failures > job.max_failures:
        move = _failed(reason, ending.message + (_budget_spent(job) if ending.outage else ""), now)
        return Move(move.to, {**move.changes, "failures": failures}, message=move.message)
    stalled = 1 if attempt.step > attempt.resume_step else job.stalled + 1
    changes: dict[str, Any] = {"failures": failures, "stalled": stalled, "reason": reason, "message": ending.message}
    if job.stop == "pause":
        return Move(JobState.PAUSED, changes, message=f"Paused. The attempt had failed: {ending.message}")
    wait_s = min(rules.retry_base_s * 2 ** min(max(stalled - 1, 0), _DOUBLINGS), rules.retry_max_s)
    changes["not_before"] = after(now, wait_s)
    return Move(
        JobState.QUEUED, changes, message=f"{ending.message} The next attempt starts in {wait_s:.0f} s at the earliest."
    )


def _budget_spent(job: Job) -> str:
    return (
        f" limits.max_failures of {job.max_failures} is used up: an operator must make sure that the storage "
        "answers the "
        "workers' hosts, then retry the job."
    )


def _failed(reason: FailureReason, message: str, now: datetime) -> Move:
    return Move(JobState.FAILED, {"reason": reason, "message": message, "finished_at": now}, message=message)


def _by_whom(job: Job) -> str:
    return f" by {job.stop_by}" if job.stop_by else ""


def _cancelled_at(job: Job, attempt: Attempt, ending: Ending) -> str:
    step = max(attempt.step, ending.result.step if ending.result else 0)
    message = f"Cancelled{_by_whom(job)} at step {step}."
    return f"{message} The attempt had failed: {ending.message}" if ending.outcome == "failed" else message


def _cancelled(message: str, now: datetime) -> Move:
    changes = {"stop": None, "stop_at": None, "reason": FailureReason.CANCELLED_BY_USER, "message": message}
    return Move(JobState.CANCELLED, {**changes, "finished_at": now}, message=message)


def _deadline_passed(job: Job, now: datetime) -> bool:
    """The deadline counts from the first start; waiting in the queue is free."""
    return job.deadline_at is not None and now > job.deadline_at


def _first_start(job: Job, now: datetime) -> dict[str, Any]:
    return {} if job.started_at is not None else {"started_at": now}
