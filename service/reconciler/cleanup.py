"""What of ours is left on the cluster: attempts that have ended give their room back, orphans are ended."""

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
"""A driver that has sent its result gets this long to leave by itself."""


def has_left(attempt: Attempt, view: ClusterState, now: datetime) -> bool:
    """Whether an ended attempt has left the cluster, so that its capacity is free.

    Where Ray says nothing sensible of it for long, what Ray reports as free on each host has to do.
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
    """Find out which ended attempts have left the cluster, and end those that linger; the ones still there."""
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
    """End submissions of ours that no attempt and no export stands behind."""
    for submission_id, submission in view.submissions.items():
        if submission.status in (RayStatus.WAITING, RayStatus.RUNNING) and submission_id not in known:
            tick.check()
            logger.warning("ending an orphan", extra={"submission": submission_id})
            backends.end_quietly(submission_id)
