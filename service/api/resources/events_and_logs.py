"""/v1/jobs/{id}/events and /logs: as pages, or as a stream that can be resumed at any position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Header, Query, Request, Response

from syncnorm.service.api.dependencies import Reader, provide, visible_job
from syncnorm.service.api.http.accept import wanted
from syncnorm.service.api.http.pagination import Cursor, decode, encode, list_id
from syncnorm.service.api.http.route import JSON, Route
from syncnorm.service.api.sse import NDJSON, NDJSON_FORMAT, SSE, TEXT, Entry, Feed, StreamFormat, sse_format, stream
from syncnorm.service.api.views.record_views import EventPage, EventView, LinePage, LineView, event_view, line_view
from syncnorm.service.api.views.view import View

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["jobs"], route_class=Route)
JobFeed = Annotated[
    Feed,
    Depends(provide(lambda parts: Feed(parts.store.jobs, parts.store.history, parts.notifier, parts.streams))),
]
Limit = Annotated[
    int, Query(ge=1, le=1000, description="Most items in a page. Without effect on a stream. Default: 200.")
]
LastId = Annotated[
    str | None,
    Header(
        alias="Last-Event-ID",
        pattern=r"^[0-9]{1,18}$",
        description="For a stream: continue after the item with this id.",
    ),
]
Follow = Annotated[
    bool, Query(description="Stay connected until the job is finished, in any form but JSON. Default: false.")
]


def _formats(view: type[View], *, text: bool) -> dict[int | str, dict[str, Any]]:
    """The media types besides JSON pages, for the OpenAPI document."""
    shown = [{"$ref": f"#/components/schemas/{view.__name__}"}, {"type": "object", "maxProperties": 0}]
    one = {"contentMediaType": JSON, "contentSchema": {"anyOf": shown}}
    event = {
        "type": "object",
        "description": f"An event of the stream; data is one {view.__name__} in JSON, of the last one (`end`) {{}}.",
        "properties": {"id": {"type": "string"}, "event": {"type": "string"}, "data": {"type": "string", **one}},
    }
    lines = {"type": "string", "description": f"One {view.__name__} in JSON on each line."}
    plain = {TEXT: {"schema": {"type": "string", "description": "Time, rank, level and text of a line."}}}
    return {200: {"content": {NDJSON: {"schema": lines}, SSE: {"schema": event}} | (plain if text else {})}}


@router.get("/events", response_model=EventPage, responses=_formats(EventView, text=False))
def events(
    job_id: str,
    *,
    request: Request,
    feed: JobFeed,
    who: Reader,
    last_event_id: LastId = None,
    follow: Follow = False,
    cursor: Cursor = None,
    limit: Limit = 200,
) -> Response:
    """Everything that happened to a job, oldest first.

    `Accept: text/event-stream` also streams new events as they come. So does `follow=true`, as server-sent events or
    NDJSON.
    """
    visible_job(feed.jobs, who, job_id)
    form = wanted(request, [SSE, NDJSON] if follow else [JSON, NDJSON, SSE])
    listing = list_id("events", job=job_id)
    after = _after(cursor, listing)

    def read(position: int, most: int) -> list[Entry]:
        return [(event.seq, event_view(event)) for event in feed.history.events(job_id, position, most)]

    if follow or form == SSE:
        return stream(feed, job_id, read, int(last_event_id or after), _format_of(form, "event"))
    found = read(after, limit)
    next_cursor = encode(listing, found[-1][0]) if len(found) == limit else None
    return _page(request, form, EventPage, found, next_cursor)


@router.get("/logs", response_model=LinePage, responses=_formats(LineView, text=True))
def logs(
    job_id: str,
    *,
    request: Request,
    feed: JobFeed,
    who: Reader,
    last_event_id: LastId = None,
    attempt: Annotated[int | None, Query(ge=1, le=2**31 - 1, description="Only of this attempt. Default: all.")] = None,
    rank: Annotated[
        int | None, Query(ge=-1, le=2**31 - 1, description="Only of this rank; -1 is the driver. Default: all.")
    ] = None,
    q: Annotated[
        str | None, Query(max_length=200, description="Only lines that contain this text. Default: all.")
    ] = None,
    tail: Annotated[
        int | None, Query(ge=1, le=1000, description="Begin with this many of the last lines. Default: all.")
    ] = None,
    follow: Follow = False,
    cursor: Cursor = None,
    limit: Limit = 200,
) -> Response:
    """Log lines of all ranks, in the order in which they came.

    `Accept` chooses among a JSON page, plain text, NDJSON and server-sent events; with `follow=true`, among the last
    three. The text of a line is as it was printed, control characters included.
    """
    visible_job(feed.jobs, who, job_id)
    form = wanted(request, [SSE, NDJSON, TEXT] if follow else [JSON, TEXT, NDJSON, SSE])
    chosen: dict[str, Any] = {"attempt": attempt, "rank": rank, "text": q}
    listing = list_id("logs", job=job_id, **chosen)
    after = _after(cursor, listing)

    def read(position: int, most: int, from_end: bool = False) -> list[Entry]:
        found = feed.history.lines(job_id, after=position, limit=most, tail=from_end, **chosen)
        return [(line.id, line_view(line)) for line in found]

    if follow or form == SSE:
        start = int(last_event_id or after)
        return stream(feed, job_id, read, start or _before_last(read, tail), _format_of(form, "line"))
    if tail is not None:
        return _page(request, form, LinePage, read(after, tail, True), None)
    found = read(after, limit)
    next_cursor = encode(listing, found[-1][0]) if len(found) == limit else None
    return _page(request, form, LinePage, found, next_cursor)


def _before_last(read: Any, tail: int | None) -> int:
    """The position before the last `tail` lines; 0 for all."""
    last: Sequence[Entry] = read(0, tail, True) if tail else []
    return last[0][0] - 1 if last else 0


def _format_of(media_type: str, event: str) -> StreamFormat:
    return {SSE: sse_format(event), NDJSON: NDJSON_FORMAT, TEXT: TEXT_FORMAT}[media_type]


def _page(
    request: Request, form: str, model: type[EventPage | LinePage], found: Sequence[Entry], next_cursor: str | None
) -> Response:
    """In JSON with a cursor; otherwise the next page is in the header Link (RFC 8288)."""
    headers = {"Vary": "Accept"}
    if form == JSON:
        page = model.model_validate({"items": [view for _, view in found], "next_cursor": next_cursor})
        return Response(page.model_dump_json(), headers=headers, media_type=form)
    if next_cursor is not None:
        query = {**request.query_params, "cursor": next_cursor}
        headers["Link"] = f'<{request.scope["path"]}?{urlencode(query)}>; rel="next"'
    write = _format_of(form, "").write
    return Response(b"".join(write(position, view) for position, view in found), headers=headers, media_type=form)


def as_text(line: LineView) -> str:
    who = "driver" if line.rank < 0 else f"rank {line.rank}"
    return f"{line.at} {who} {line.level} {line.text}"


def _line(_position: int, view: View) -> bytes:
    assert isinstance(view, LineView)
    return f"{as_text(view)}\n".encode("utf-8", "replace")


TEXT_FORMAT = StreamFormat(TEXT, _line)


def _after(cursor: str | None, listing: str) -> int:
    return int(decode(listing, cursor, int)[0]) if cursor is not None else 0
