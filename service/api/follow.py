"""Server-sent events: everything after a position, then what comes, each with the position to go on from."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

from fastapi.responses import StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.concurrency import run_in_threadpool

from service.api.context import Context
from service.jobs import TERMINAL

_QUIET_S = 15.0
"""After so long without news a comment keeps the connection open, and the follower looks for itself."""
_PAGE = 500

Entry = tuple[int, str]
"""Position and JSON text."""


def sse(
    ctx: Context, job_id: str, read: Callable[[int, int], Sequence[Entry]], after: int, event: str
) -> StreamingResponse:
    """Follow until the job is finished and everything is sent; then an event `end`."""
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_stream(ctx, job_id, read, after, event), media_type="text/event-stream", headers=headers)


async def _stream(
    ctx: Context, job_id: str, read: Callable[[int, int], Sequence[Entry]], after: int, event: str
) -> AsyncIterator[bytes]:
    with ctx.hub.following(job_id) as changed:
        while not ctx.hub.is_closed:
            changed.clear()
            # The state first: what was written before it became final is then in the page.
            job = await run_in_threadpool(ctx.store.job, job_id)
            page = await run_in_threadpool(read, after, _PAGE)
            for position, text in page:
                yield format_sse_event(data_str=text, event=event, id=str(position))
                after = position
            if len(page) == _PAGE:
                continue
            if job is None or job.state in TERMINAL:
                yield format_sse_event(data_str="{}", event="end", id=str(after))
                return
            try:
                await asyncio.wait_for(changed.wait(), _QUIET_S)
            except TimeoutError:
                yield KEEPALIVE_COMMENT
