"""GET /v1/jobs: filters, order and pages."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Depends, Query, Response
from pydantic import AfterValidator, BeforeValidator, WithJsonSchema

from syncnorm.service.api.dependencies import Reader, provide
from syncnorm.service.api.http.pagination import Cursor, decode, encode, invalid_cursor, list_id
from syncnorm.service.api.http.route import Route
from syncnorm.service.api.views.job_view import JobPage, job_text
from syncnorm.service.jobs.job import JobState
from syncnorm.service.store import JobQuery, sort_value
from syncnorm.service.store.tables.jobs import JobTable

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=Route)


@dataclass(frozen=True)
class _Lists:
    jobs: JobTable
    mlflow_uri: str
    limiter: CapacityLimiter


Lists = Annotated[
    _Lists,
    Depends(provide(lambda parts: _Lists(parts.store.jobs, parts.mlflow_uri, parts.lists))),
]
_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")
_LABEL = r"^[A-Za-z0-9._-]{1,63}:[^\x00-\x1f]{0,120}$"
Sort = Literal[
    "-created_at",
    "created_at",
    "-finished_at",
    "finished_at",
    "-priority",
    "priority",
    "-name",
    "name",
    "-state",
    "state",
]
_NOTHING = type(None)
_VALUES: dict[str, type | tuple[type, ...]] = {
    "created_at": _NOTHING,
    "finished_at": (str, _NOTHING),
    "name": str,
    "priority": int,
    "state": str,
}
"""What a cursor of each order holds besides an id."""
_OF_PAGES = ("after", "limit", "full")


def _instant(value: Any) -> datetime:
    if not isinstance(value, str) or not _RFC_3339.fullmatch(value):
        raise ValueError("must be a time with its zone, for example 2026-01-31T12:00:00Z; write a + as %2B in a URL")
    try:
        return datetime.fromisoformat(value.upper()).astimezone(UTC)
    except OverflowError as error:
        raise ValueError("must lie in the years 1 to 9999 (UTC)") from error


def _label(value: str) -> str:
    if not re.fullmatch(_LABEL, value):
        raise ValueError("must be key:value, for example team:vision")
    return value


Instant = Annotated[datetime, BeforeValidator(_instant)]
LabelFilter = Annotated[str, AfterValidator(_label), WithJsonSchema({"type": "string", "pattern": _LABEL})]


def _exactly(what: str, longest: int = 120) -> Any:
    return Query(max_length=longest, description=f"With exactly this {what}. Default: any.")


@router.get("", response_model=JobPage)
async def list_jobs(
    *,
    lists: Lists,
    who: Reader,
    state: Annotated[
        list[JobState], Query(default_factory=list, max_length=20, description="In any of these states. Default: all.")
    ],
    project: Annotated[str | None, _exactly("project")] = None,
    owner: Annotated[str | None, _exactly("owner")] = None,
    norm: Annotated[str | None, _exactly("normalization in use", 32)] = None,
    name: Annotated[str | None, _exactly("name")] = None,
    id_prefix: Annotated[
        str | None, Query(pattern=r"^job_[0-9a-z]{0,26}$", description="With an id that begins with this.")
    ] = None,
    label: Annotated[
        list[LabelFilter],
        Query(default_factory=list, max_length=16, description="With all of these labels, each as key:value."),
    ],
    created_after: Annotated[
        Instant | None, Query(description="Submitted after this time, such as 2026-01-31T12:00:00Z.")
    ] = None,
    sort: Annotated[
        Sort,
        Query(description="With a minus, the highest or latest first. By finished_at, unfinished jobs come last."),
    ] = "-created_at",
    full: Annotated[
        bool, Query(description="Include the spec and the certificate of every job. Default: false.")
    ] = False,
    limit: Annotated[int, Query(ge=1, le=200, description="Most jobs in a page. Default: 50.")] = 50,
    cursor: Cursor = None,
) -> Response:
    """Jobs, newest first unless sorted otherwise.

    `next_cursor` leads to the next page, also if jobs were added since. Use it with the same filters and sort.
    """
    if not who.is_admin:
        if owner not in (None, who.name):
            return _page([], None)
        owner = who.name
    labels = {(key, value) for key, _, value in (one.partition(":") for one in label)}
    query = JobQuery(
        states=tuple(sorted(set(state))),
        project=project,
        owner=owner,
        norm=norm,
        name=name,
        id_prefix=id_prefix,
        labels=tuple(sorted(labels)),
        created_after=created_after,
        sort=sort,
        limit=limit,
        full=full,
    )
    if cursor is not None:
        query = replace(query, after=_position(cursor, query))
    return await to_thread.run_sync(_listed, lists, query, limiter=lists.limiter)


def listing_of(query: JobQuery) -> str:
    """What a cursor belongs to: filters and order."""
    return list_id("jobs", **{name: value for name, value in vars(query).items() if name not in _OF_PAGES})


def _position(cursor: str, query: JobQuery) -> tuple[Any, str]:
    """The place a cursor stands for, as the store knows it. Raises: ApiError 422."""
    by = query.sort.lstrip("-")
    value, job_id = decode(listing_of(query), cursor, _VALUES[by], str)
    if by == "priority":
        return max(-1000, min(value, 1000)), job_id
    if by == "finished_at" and value is not None:
        try:
            return _instant(value), job_id
        except ValueError as error:
            raise invalid_cursor() from error
    return value, job_id


def _listed(lists: _Lists, query: JobQuery) -> Response:
    found = lists.jobs.find(query)
    following = None
    if len(found) == query.limit:
        value = sort_value(found[-1], query.sort)
        position = value.isoformat() if isinstance(value, datetime) else value
        following = encode(listing_of(query), position, found[-1].id)
    return _page([job_text(one, lists.mlflow_uri) for one in found], following)


def _page(items: list[str], next_cursor: str | None) -> Response:
    """A JobPage."""
    text = f'{{"items":[{",".join(items)}],"next_cursor":{json.dumps(next_cursor)}}}'
    return Response(text, media_type="application/json")
