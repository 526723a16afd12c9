"""Frees the capacity of ended attempts once Ray confirms they are gone, and stops submissions that belong to no job."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from datetime import datetime

from syncnorm.service.integrations.ray_jobs import ClusterState
from syncnorm.service.jobs.attempt_ending import LONGEST_ODD_S, RayStatus
from syncnorm.service.jobs.job import Attempt
from syncnorm.service.reconciler.backends import Backends, Tick
from syncnorm.service.reconciler.isolation import Isolation

logger = logging.getLogger(__name__)

_EXIT_GRACE_S = 15.0
"""Time for a driver to exit by itself after it has sent its result."""


def has_left(attempt: Attempt, view: ClusterState, now: datetime) -> bool:
    """Whether an ended attempt has left the cluster, so that its capacity is free.

    If Ray gives no usable state of it for long, Ray's report of free capacity on each host has to be enough.
    """
    if attempt.ended_at is None:
        return False
    submission = view.submissions.get(attempt.id)
    if submission is None or attempt.session not in (None, view.session):
        return True
    if submission.status is RayStatus.UNREACHABLE:
        return (now - attempt.ended_at).total_seconds() > LONGEST_ODD_S
    return submission.status is RayStatus.ENDED


def release(
    backends: Backends, items: Isolation, tick: Tick, view: ClusterState, attempts: Sequence[Attempt]
) -> list[Attempt]:
    """Release ended attempts that have left the cluster, and stop those that linger; returns those still there."""
    now = backends.store.now()
    lingering = []
    for attempt in attempts:
        tick.check()
        if has_left(attempt, view, now):
            _release_one(backends, items, tick, attempt)
            continue
        lingering.append(attempt)
        if attempt.ended_at is not None and (now - attempt.ended_at).total_seconds() > _EXIT_GRACE_S:
            backends.end_quietly(attempt.id)
    return lingering


def _release_one(backends: Backends, items: Isolation, tick: Tick, attempt: Attempt) -> None:
    def act() -> None:
        if backends.store.attempts.release(attempt.id, tick.token) is None:
            return
        backends.dispatcher.forget(attempt.id)
        if backends.metrics is not None:
            backends.metrics.attempt_ended(attempt.outcome or "", attempt.reason or "")

    items.attempt(
        "release",
        attempt.id,
        act,
        lambda _why, _trace: backends.store.set_aside.release_uncounted(attempt.id, tick.token),
    )


def stop_orphans(backends: Backends, tick: Tick, view: ClusterState, known: Collection[str]) -> None:
    """Stop submissions of ours that belong to no attempt and no export."""
    for submission_id, submission in view.submissions.items():
        if submission.status in (RayStatus.WAITING, RayStatus.RUNNING) and submission_id not in known:
            tick.check()
            logger.warning("stopping a Ray submission that belongs to no job", extra={"submission": submission_id})
            backends.end_quietly(submission_id)
