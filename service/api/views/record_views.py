"""The JSON form of a job's events and log lines."""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache
from typing import Any

from syncnorm.service.api.views.view import View
from syncnorm.service.jobs.actors import ActorKind
from syncnorm.service.store import StoredEvent, StoredLine


class ActorView(View):
    """Who did it: a user, the service, or the workers of an attempt."""

    kind: ActorKind
    """user, service or worker."""
    owner: str | None
    """The user's name; null for service and workers."""
    token_id: str | None
    """Id of the token the user showed; null where authentication is off, and for service and workers."""


class EventView(View):
    """Something that happened to a job."""

    seq: int
    """Counts up; the id of the event in a stream."""
    at: datetime
    """When it happened."""
    kind: str
    """What happened, as a word for programs. `user.…` comes from the code of the job."""
    message: str
    """What happened, in a sentence."""
    data: dict[str, Any]
    """Numbers and ids that belong to it."""
    actor: ActorView | None
    """Who did it; null for events of versions that did not record it."""
    request_id: str | None
    """The request that caused it, as in the answer and in the service log; null if none did, and for events of versions
    that did not record it."""


class EventPage(View):
    """A page of events."""

    items: list[EventView]
    """The events, oldest first."""
    next_cursor: str | None
    """Send it as `cursor` to get the next page. null: this is the last page."""


class LineView(View):
    """A log line of a worker."""

    id: int
    """Counts up; the id of the line in a stream."""
    attempt: int
    """Number of the attempt."""
    rank: int
    """The rank that wrote it; -1 is the driver."""
    seq: int
    """Counts the lines of this rank in this attempt, from 1."""
    at: str
    """When it was written."""
    level: str
    """DEBUG, INFO, WARNING or ERROR."""
    text: str
    """The line."""


class LinePage(View):
    """A page of log lines."""

    items: list[LineView]
    """The lines, in the order in which they came."""
    next_cursor: str | None
    """Send it as `cursor` to get the next page. null: this is the last page."""


def event_view(event: StoredEvent) -> EventView:
    by = event.by
    return EventView(
        seq=event.seq,
        at=event.at,
        kind=event.kind,
        message=event.message,
        data=event.data or {},
        actor=ActorView(kind=by.kind, owner=by.owner, token_id=by.token_id) if by else None,
        request_id=event.request_id,
    )


@lru_cache(1024)
def line_view(line: StoredLine) -> LineView:
    """Remembered, because many may follow one job."""
    return LineView(**vars(line))
