"""/v1/jobs/{id}/events and /logs: pages, or a stream that can be taken up again anywhere."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import JSONResponse, PlainTextResponse

from service.api.context import Context, Ctx, Reader, visible_job
from service.api.cursors import decode_number, encode
from service.api.follow import Entry, sse
from service.errors import ApiError
from service.views import EventPage, LinePage, LineView, event_view, line_view

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["jobs"])
Cursor = Annotated[str | None, Query(max_length=200)]
Limit = Annotated[int, Query(ge=1, le=1000)]
LastId = Annotated[str | None, Header(alias="Last-Event-ID", max_length=20)]
STREAM = "text/event-stream"
_CONTENT: dict[int | str, dict[str, Any]] = {200: {"content": {STREAM: {"schema": {"type": "string"}}}}}


@router.get("/events", response_model=EventPage, responses=_CONTENT)
def events(
    job_id: str,
    *,
    ctx: Ctx,
    who: Reader,
    accept: Annotated[str, Header()] = "",
    last_event_id: LastId = None,
    cursor: Cursor = None,
    limit: Limit = 200,
) -> Response:
    """Everything that happened to a job, oldest first; with `Accept: text/event-stream` also what comes."""
    visible_job(ctx, who, job_id)
    after = decode_number(cursor)
    if STREAM in accept:

        def read(position: int, most: int) -> list[Entry]:
            found = ctx.store.events(job_id, position, most)
            return [(event.seq, event_view(event).model_dump_json()) for event in found]

        return sse(ctx, job_id, read, _position(last_event_id, after), "event")
    found = [event_view(event) for event in ctx.store.events(job_id, after, limit)]
    page = EventPage(items=found, next_cursor=encode(str(found[-1].seq)) if len(found) == limit else None)
    return JSONResponse(page.model_dump(mode="json"))


@router.get(
    "/logs",
    response_model=LinePage,
    responses={
        200: {
            "content": {kind: {"schema": {"type": "string"}} for kind in (STREAM, "text/plain", "application/x-ndjson")}
        }
    },
)
def logs(
    job_id: str,
    *,
    ctx: Ctx,
    who: Reader,
    accept: Annotated[str, Header()] = "",
    last_event_id: LastId = None,
    attempt: Annotated[int | None, Query(ge=1, le=2**31 - 1)] = None,
    rank: Annotated[int | None, Query(ge=-1, le=2**31 - 1)] = None,
    q: Annotated[str | None, Query(max_length=200)] = None,
    tail: Annotated[int | None, Query(ge=1, le=1000)] = None,
    follow: bool = False,
    cursor: Cursor = None,
    limit: Limit = 200,
) -> Response:
    """Log lines of all ranks; rank -1 is the driver. JSON, text/plain, NDJSON, or a stream (follow)."""
    visible_job(ctx, who, job_id)
    if q is not None and "\x00" in q:
        raise ApiError(422, "invalid_request", "q must not contain NUL.")
    chosen: dict[str, Any] = {"attempt": attempt, "rank": rank, "text": q}
    after = decode_number(cursor)
    if follow or STREAM in accept:
        return _follow(ctx, job_id, chosen, tail, _position(last_event_id, after))
    lines = ctx.store.lines(job_id, after=after, limit=tail or limit, tail=tail is not None, **chosen)
    found = [line_view(line) for line in lines]
    if "text/plain" in accept:
        return PlainTextResponse("".join(as_text(line) + "\n" for line in found))
    if "application/x-ndjson" in accept:
        return Response("".join(line.model_dump_json() + "\n" for line in found), media_type="application/x-ndjson")
    more = tail is None and len(found) == limit
    page = LinePage(items=found, next_cursor=encode(str(found[-1].id)) if more else None)
    return JSONResponse(page.model_dump(mode="json"))


def _follow(ctx: Context, job_id: str, chosen: dict[str, Any], tail: int | None, after: int) -> Response:
    if tail is not None and after == 0:
        last = ctx.store.lines(job_id, limit=tail, tail=True, **chosen)
        after = last[0].id - 1 if last else 0

    def read(position: int, most: int) -> list[Entry]:
        found = ctx.store.lines(job_id, after=position, limit=most, **chosen)
        return [(line.id, line_view(line).model_dump_json()) for line in found]

    return sse(ctx, job_id, read, after, "line")


def as_text(line: LineView) -> str:
    who = "driver" if line.rank < 0 else f"rank {line.rank}"
    return f"{line.at} {who} {line.level} {line.text}"


def _position(last_event_id: str | None, after: int) -> int:
    if last_event_id is None:
        return after
    if not last_event_id.isdigit() or len(last_event_id) > 18:
        raise ApiError(422, "invalid_request", "Last-Event-ID must be the id of an event of this stream.")
    return int(last_event_id)
