"""What of ours is left on the cluster: attempts that have ended give their room back, orphans are ended."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

from service.decide import RayStatus
from service.dispatch import View
from service.jobs import Attempt
from service.steps.ports import Ports

logger = logging.getLogger(__name__)

_EXIT_GRACE_S = 15.0
"""A driver that has sent its result gets this long to leave by itself."""


def release(ports: Ports, token: int, view: View, attempts: Sequence[Attempt]) -> list[Attempt]:
    """Find out which ended attempts have left the cluster, and end those that linger; the ones still there."""
    now = ports.store.now()
    left = []
    for attempt in attempts:
        submission = view.submissions.get(attempt.id)
        elsewhere = attempt.session not in (None, view.session)
        gone = elsewhere or submission is None or submission.status is RayStatus.ENDED
        if attempt.ended_at is not None and gone:
            if ports.store.release(attempt.id, token) is not None:
                ports.dispatcher.forget(attempt.id)
                if ports.metrics is not None:
                    ports.metrics.attempt_ended(attempt.outcome or "", attempt.reason or "")
            continue
        left.append(attempt)
        if attempt.ended_at is not None and (now - attempt.ended_at).total_seconds() > _EXIT_GRACE_S:
            ports.end_quietly(attempt.id)
    return left


def stop_orphans(ports: Ports, view: View, known: Collection[str]) -> None:
    """End submissions of ours that no attempt and no export stands behind."""
    for submission_id, submission in view.submissions.items():
        if submission.status in (RayStatus.WAITING, RayStatus.RUNNING) and submission_id not in known:
            logger.warning("ending an orphan", extra={"submission": submission_id})
            ports.end_quietly(submission_id)
