"""The JSON form of attempts."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from syncnorm.service.api.views.view import View, read
from syncnorm.service.jobs.job import Attempt
from syncnorm.trainer.contract.failure import FailureReason
from syncnorm.trainer.contract.protocol import RankPlacement


class AttemptView(View):
    """One execution of a job on Ray."""

    id: str
    """Id of the attempt, which is also its submission id on Ray."""
    number: int
    """Counts the attempts of a job, from 1."""
    workers: int
    """Workers of this attempt, chosen when it started."""
    outcome: str | None
    """succeeded, failed, stopped (on request, with a checkpoint) or lost (it ended without a result); null while it
    runs."""
    reason: FailureReason | None
    """Why it failed or was stopped; null otherwise."""
    message: str
    """What happened, in a sentence."""
    step: int
    """The furthest optimizer step it reported."""
    phase: str | None
    """preparing, starting_workers, training, finalizing or done, as last reported; null before the first heartbeat."""
    phases: dict[str, datetime]
    """When each phase was first reported."""
    resume_from: str | None
    """Path of the checkpoint it started from; null: from the beginning."""
    placement: list[RankPlacement]
    """Where each rank runs; empty until all ranks have come. A page shows 1,024 of them, those of the latest attempts
    first."""
    placed: int
    """How many ranks have a place, shown or not."""
    created_at: datetime
    """When its capacity was reserved."""
    submitted_at: datetime | None
    """When Ray accepted it; null before."""
    heartbeat_at: datetime | None
    """When it was last heard from; null before the first heartbeat."""
    ended_at: datetime | None
    """When it ended; null while it runs."""
    released_at: datetime | None
    """When Ray confirmed that none of its processes runs any more, so that its capacity is free; null before."""


class AttemptPage(View):
    """All attempts of a job."""

    items: list[AttemptView]
    """The attempts, the first one first."""
    next_cursor: str | None = None
    """Always null: all of them are on this page."""


_MOST_PLACES = 1024


def attempt_views(attempts: Sequence[Attempt]) -> list[AttemptView]:
    """In order. If they have very many ranks in all, those of the latest attempts are shown."""
    left, views = _MOST_PLACES, []
    for attempt in reversed(attempts):
        places = attempt.placement or []
        views.append(_attempt_view(attempt, places[:left]))
        left -= min(left, len(places))
    return views[::-1]


def _attempt_view(attempt: Attempt, places: Sequence[Any]) -> AttemptView:
    values = {name: getattr(attempt, name) for name in AttemptView.model_fields if name != "placed"}
    placed = len(attempt.placement or [])
    shown = [place for item in places if (place := read(RankPlacement, item))]
    return AttemptView(**values | {"phases": attempt.phases or {}, "placement": shown, "placed": placed})
