"""Follows a job: everything after a position, then new items as they come, in the format the client asked for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from fastapi.responses import StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.concurrency import run_in_threadpool

from syncnorm.service.api.change_notifier import ChangeNotifier
from syncnorm.service.api.views import View
from syncnorm.service.jobs.job import TERMINAL
from syncnorm.service.store.tables.history import HistoryTable
from syncnorm.service.store.tables.jobs import JobTable

_QUIET_S = 15.0
"""After so long without a change the follower reads again, and a comment is sent if the format has one."""
_PAGE = 500

SSE, NDJSON, TEXT = "text/event-stream", "application/x-ndjson", "text/plain"
Entry = tuple[int, View]
"""A position, and the item there."""
Read = Callable[[int, int], Sequence[Entry]]
"""Reads the items after a position, at most so many."""


@dataclass(frozen=True)
class Feed:
    """What is needed to follow a job."""

    jobs: JobTable
    history: HistoryTable
    notifier: ChangeNotifier


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
    with feed.notifier.following(job_id) as changed:
        while not feed.notifier.is_closed:
            changed.clear()
            # Read the state first: everything written before it became final is then in the page.
            job = await run_in_threadpool(feed.jobs.get, job_id)
            page = await run_in_threadpool(read, after, _PAGE)
            for position, view in page:
                yield form.write(position, view)
                after = position
            if len(page) == _PAGE:
                continue
            if job is None or job.state in TERMINAL:
                yield form.end(after)
                return
            try:
                await asyncio.wait_for(changed.wait(), _QUIET_S)
            except TimeoutError:
                yield form.comment
