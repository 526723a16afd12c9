"""/v1/audit: who did what, when, from which token. For admins."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from syncnorm.service.api.dependencies import Admin, provide
from syncnorm.service.api.http.pagination import Cursor, decode, encode, list_id
from syncnorm.service.api.http.route import Route
from syncnorm.service.api.resources.job_list import Instant
from syncnorm.service.api.views.record_views import ActorView
from syncnorm.service.api.views.view import View
from syncnorm.service.jobs.actors import Outcome
from syncnorm.service.store import AuditEntry, AuditQuery
from syncnorm.service.store.administration.audit import AuditTable

router = APIRouter(prefix="/v1/audit", tags=["audit"], route_class=Route)
Audit = Annotated[AuditTable, Depends(provide(lambda components: components.store.audit))]


class AuditView(View):
    """An entry of the audit."""

    at: datetime
    """When it happened."""
    actor: ActorView
    """Who did it."""
    action: str
    """What was done, such as `job.cancel` or `token.create`."""
    object: str
    """What it was done to: an id, or OWNER/NAME of a secret."""
    before: dict[str, Any] | None
    """The values that changed, as they were; never the value of a secret. null if none changed."""
    after: dict[str, Any] | None
    """The values that changed, as they are; never the value of a secret. null if none changed."""
    outcome: Outcome
    """Whether it was done. `unchanged`: it was so already."""
    detail: str
    """For refusals: status and code of the answer."""
    count: int
    """How often the same was refused: repetitions within a minute become one entry."""
    request_id: str | None
    """As in the answer and in the service log; null if no request asked for it."""


class AuditPage(View):
    """A page of the audit."""

    items: list[AuditView]
    """The entries, newest first."""
    next_cursor: str | None
    """Send it as `cursor` to get the next page. null: this is the last page."""


@router.get("")
def list_audit(
    *,
    audit: Audit,
    who: Admin,  # noqa: ARG001  (its check is what is wanted)
    actor: Annotated[
        str | None, Query(max_length=120, description="By this owner, or with the token of this id.")
    ] = None,
    action: Annotated[
        str | None, Query(max_length=40, description="Such as job.cancel; job: everything about jobs.")
    ] = None,
    object: Annotated[
        str | None, Query(max_length=400, description="Id of a job, study, token or package; OWNER/NAME of a secret.")
    ] = None,
    since: Annotated[Instant | None, Query(description="At this time or later, such as 2026-01-31T12:00:00Z.")] = None,
    until: Annotated[Instant | None, Query(description="Before this time, such as 2026-01-31T12:00:00Z.")] = None,
    cursor: Cursor = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="Most entries in a page. Default: 50.")] = 50,
) -> AuditPage:
    """Who did what, newest first: verbs on jobs and studies, changes of priority, labels and limits, exports, tokens,
    secrets and packages, refused requests, and failed authentication."""
    listing = list_id("audit", actor=actor, action=action, object=object, since=since, until=until)
    before = decode(listing, cursor, int)[0] if cursor is not None else None
    found = audit.find(AuditQuery(actor, action, object, since, until, before, limit))
    following = encode(listing, found[-1].seq) if len(found) == limit else None
    return AuditPage(items=[_view(entry) for entry in found], next_cursor=following)


def _view(entry: AuditEntry) -> AuditView:
    return AuditView(
        at=entry.at,
        actor=ActorView(kind=entry.actor_kind, owner=entry.owner or None, token_id=entry.token_id),
        action=entry.action,
        object=entry.object,
        before=entry.before,
        after=entry.after,
        outcome=entry.outcome,
        detail=entry.detail,
        count=entry.count,
        request_id=entry.request_id or None,
    )
