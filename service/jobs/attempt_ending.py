"""Whether an attempt is over, given what was observed of it. Pure.

It is over when it said so itself (its result, under its fence), or when two witnesses agree that it is dead: its lease
ran out; and Ray, in the same session, calls it ended or unknown, or its host gone. Ray that can't be reached says
nothing at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from syncnorm.service.jobs.job import Attempt, Job, stored_result
from syncnorm.trainer.contract.failure import FailureReason
from syncnorm.trainer.contract.protocol import CANNOT_BEGIN, CANNOT_BEGIN_NOW, Result

LONGEST_LINE = 300
OTHER_VERSION = "The workers of Ray have another version of syncnorm, or none. Give them the version of the service."


def lacks_our_program(log: str) -> bool:
    """Whether Ray's Python did not find a program of this version, as on workers that are not upgraded yet."""
    return "No module named 'syncnorm" in log


LONGEST_ODD_S = 600.0
"""A silent attempt counts as dead if Ray answers, but gives no usable state of it, for so long."""


class RayStatus(StrEnum):
    """Ray's state of one submission."""

    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"
    UNKNOWN = "unknown"
    """Ray answers that it does not know the submission."""
    UNREACHABLE = "unreachable"


@dataclass(frozen=True)
class Observation:
    """What was observed about an attempt. now: database time."""

    now: datetime
    ray: RayStatus = RayStatus.UNREACHABLE
    session: str | None = None
    """The session Ray is in; None while it can't be reached."""
    node_gone: bool = False
    ray_message: str = ""
    """Why the submission ended, in Ray's words, with the last lines it printed."""
    result: Result | None = None
    storage_away: bool = False
    """The storage is unavailable, so it is unknown whether there is a result."""
    others_launch: bool = False
    """Whether attempts of other jobs were launched since this one was recorded."""


@dataclass(frozen=True)
class Rules:
    """Times, in seconds, that decisions depend on."""

    startup_timeout_s: float = 600.0
    orphan_life_s: float | None = 60.0
    """How long processes of a cluster that is gone may live on after their lease; None: they are known to be gone."""
    retry_base_s: float = 10.0
    retry_max_s: float = 600.0


@dataclass(frozen=True)
class Ending:
    """How an attempt ended, by its own word or by that of two witnesses."""

    outcome: str
    reason: FailureReason | None
    message: str
    result: Result | None
    counts: bool = True
    """Whether it uses up one of limits.max_failures: not when the whole cluster went away."""
    outage: bool = False
    """For the reason storage: it did not answer, and may on a retry."""


def ending_of(job: Job, attempt: Attempt, observation: Observation, rules: Rules) -> Ending | None:
    result = observation.result or stored_result(attempt)
    if result is not None:
        return Ending(result.outcome, result.reason, result.message, result, outage=result.outage)
    if not _is_dead(attempt, observation, rules):
        return None
    if observation.storage_away and job.stop != "cancel":
        return None  # an attempt that looks dead may have succeeded
    if _is_from_an_earlier_session(attempt, observation):
        return Ending(
            "lost", FailureReason.NODE_LOST, f"The Ray cluster restarted at step {attempt.step}.", None, False
        )
    for begin in (CANNOT_BEGIN, CANNOT_BEGIN_NOW):
        if begin in observation.ray_message:
            why = observation.ray_message.rpartition(begin)[2].splitlines()[0]
            return Ending("failed", FailureReason.STORAGE, why, None, outage=begin == CANNOT_BEGIN_NOW)
    return _lost(job, attempt, observation)


def _lost(job: Job, attempt: Attempt, observation: Observation) -> Ending:
    message = attempt.message or _silent_end(attempt, observation)
    if attempt.stop_sent_at is not None and job.stop is not None:
        return Ending("stopped" if attempt.heartbeat_at is None else "lost", attempt.reason, message, None)
    reason = attempt.reason or (FailureReason.NODE_LOST if observation.node_gone else FailureReason.WORKER_LOST)
    never_launched = reason is FailureReason.STARTUP_TIMEOUT and attempt.submitted_at is None
    return Ending("lost", reason, message, None, counts=observation.others_launch or not never_launched)


def _silent_end(attempt: Attempt, observation: Observation) -> str:
    """With the last line of a driver that was never heard from, as where Ray's Python lacks a package."""
    lines = [line.strip() for line in observation.ray_message.splitlines() if line.strip()]
    if attempt.heartbeat_at is None and lines:
        said = f"Attempt {attempt.number} ended before it reported anything. Its last line: {lines[-1][:LONGEST_LINE]}"
        return f"{said}. {OTHER_VERSION}" if lacks_our_program(lines[-1]) else said
    return f"Attempt {attempt.number} ended without a result at step {attempt.step}."


def may_be_over(attempt: Attempt, observation: Observation) -> bool:
    """Whether anything suggests that the attempt has ended, so that it is time to read its result."""
    gone = observation.ray in (RayStatus.ENDED, RayStatus.UNKNOWN) or observation.node_gone
    overdue = attempt.phase == "done" or attempt.lease_expires_at < observation.now
    return gone or overdue or _is_from_an_earlier_session(attempt, observation)


def _is_dead(attempt: Attempt, observation: Observation, rules: Rules) -> bool:
    overdue_s = (observation.now - attempt.lease_expires_at).total_seconds()
    if observation.ray is RayStatus.UNREACHABLE and observation.session is not None and overdue_s > LONGEST_ODD_S:
        return True
    if _is_from_an_earlier_session(attempt, observation):
        return rules.orphan_life_s is None or overdue_s > rules.orphan_life_s
    ray_gone = observation.ray is RayStatus.ENDED or (
        observation.ray is RayStatus.UNKNOWN and (attempt.submitted_at is not None or attempt.stop_sent_at is not None)
    )
    if attempt.stop_sent_at is not None and ray_gone:
        return True  # we asked Ray to stop it, and Ray confirms
    # Ray's states of the submission and its host come from one head: a partition makes both wrong within a second.
    return overdue_s > 0 and (ray_gone or observation.node_gone)


def _is_from_an_earlier_session(attempt: Attempt, observation: Observation) -> bool:
    return observation.session is not None and attempt.session is not None and observation.session != attempt.session
