"""Follows a job: everything after a position, then new items as they come, in the format the client asked for."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from anyio import CapacityLimiter, to_thread
from fastapi.responses import StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from syncnorm.service.api.change_notifier import ChangeNotifier
from syncnorm.service.api.views.view import View
from syncnorm.service.store.tables.history import HistoryTable
from syncnorm.service.store.tables.jobs import JobTable

_QUIET_S = 15.0
"""After so long without an item the follower reads again, and a comment is sent if the format has one."""
_REST_S = 0.25
"""Least time between two reads of a follower: it gets all lines of that time at once, so that a job that prints without
end costs each of its followers a few reads a second, not one for every message of every rank."""
_PAGE = 500

SSE, NDJSON, TEXT = "text/event-stream", "application/x-ndjson", "text/plain"
Entry = tuple[int, View]
"""A position, and the item there."""
Read = Callable[[int, int], Sequence[Entry]]
"""Reads the items after a position, at most so many."""


@dataclass(frozen=True)
class Feed:
    """What is needed to follow a job. limiter: of the threads that read for followers."""

    jobs: JobTable
    history: HistoryTable
    notifier: ChangeNotifier
    limiter: CapacityLimiter


@dataclass(frozen=True)
class _Part:
    """What comes next in a stream, as bytes. position: of its last item. is_full: there may be more already."""

    content: bytes
    position: int
    is_full: bool
    is_last: bool


@dataclass(frozen=True)
class StreamFormat:
    """The format of a stream. write: one item; end: the last bytes; comment: keeps a quiet connection open."""

    media_type: str
    write: Callable[[int, View], bytes]
    end: Callable[[int], bytes] = lambda _position: b""
    comment: bytes = b""


def sse_format(event: str) -> StreamFormat:
    """Server-sent events, each with the id to resume from, then an event `end`."""
    return StreamFormat(
        SSE,
        lambda position, view: format_sse_event(data_str=view.model_dump_json(), event=event, id=str(position)),
        lambda position: format_sse_event(data_str="{}", event="end", id=str(position)),
        KEEPALIVE_COMMENT,
    )


NDJSON_FORMAT = StreamFormat(NDJSON, lambda _, view: view.model_dump_json().encode() + b"\n")


def stream(feed: Feed, job_id: str, read: Read, after: int, form: StreamFormat) -> StreamingResponse:
    """Follow until the job is finished and everything is sent."""
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", "Vary": "Accept"}
    return StreamingResponse(_entries(feed, job_id, read, after, form), media_type=form.media_type, headers=headers)


async def _entries(feed: Feed, job_id: str, read: Read, after: int, form: StreamFormat) -> AsyncIterator[bytes]:
    loop = asyncio.get_running_loop()
    with feed.notifier.following(job_id) as changed:
        sent_at = loop.time()
        while not feed.notifier.is_closed:
            changed.clear()
            rested = loop.time() + _REST_S
            part = await to_thread.run_sync(_next_part, feed, job_id, read, after, form, limiter=feed.limiter)
            after = part.position
            # A change may concern what this follower does not read, such as log lines where it reads events.
            if part.content or loop.time() - sent_at >= _QUIET_S:
                yield part.content or form.comment
                sent_at = loop.time()
            if part.is_last:
                yield form.end(after)
                return
            if part.is_full:
                continue
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), sent_at + _QUIET_S - loop.time())
            await asyncio.sleep(rested - loop.time())


def _next_part(feed: Feed, job_id: str, read: Read, after: int, form: StreamFormat) -> _Part:
    # Read the state first: everything written before it became final is then in the page.
    is_over = feed.jobs.is_over(job_id)
    page = read(after, _PAGE)
    is_full = len(page) == _PAGE
    content = b"".join(form.write(position, view) for position, view in page)
    return _Part(content, page[-1][0] if page else after, is_full, is_over and not is_full)
