"""/v1/audit: who did what, when, from which token. For admins."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from syncnorm.service.api.dependencies import Admin, provide
from syncnorm.service.api.http.pagination import LONGEST, decode, encode, list_id
from syncnorm.service.api.http.route import Route
from syncnorm.service.api.resources.job_list import Instant
from syncnorm.service.api.views import ActorView, View
from syncnorm.service.jobs.actors import Outcome
from syncnorm.service.store import AuditEntry, AuditQuery
from syncnorm.service.store.administration.audit import AuditTable

router = APIRouter(prefix="/v1/audit", tags=["audit"], route_class=Route)
Audit = Annotated[AuditTable, Depends(provide(lambda components: components.store.audit))]


class AuditView(View):
    """before, after: the values that changed; never the value of a secret. outcome `unchanged`: it was so already.
    count: how often the same was refused, for refusals are added up. request_id: as in the answer and in the log."""

    at: datetime
    actor: ActorView
    action: str
    object: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    outcome: Outcome
    detail: str
    count: int
    request_id: str | None


class AuditPage(View):
    items: list[AuditView]
    next_cursor: str | None


@router.get("")
def list_audit(
    *,
    audit: Audit,
    who: Admin,  # noqa: ARG001  (its check is what is wanted)
    actor: Annotated[str | None, Query(max_length=120, description="An owner, or the id of a token.")] = None,
    action: Annotated[
        str | None, Query(max_length=40, description="E.g. job.cancel; job: everything about jobs.")
    ] = None,
    object: Annotated[
        str | None, Query(max_length=400, description="Id of a job, study, token or package; OWNER/NAME of a secret.")
    ] = None,
    since: Instant | None = None,
    until: Instant | None = None,
    cursor: Annotated[str | None, Query(max_length=LONGEST)] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
) -> AuditPage:
    """Who did what, newest first: verbs on jobs and studies, changes of priority, labels and limits, exports, tokens,
    secrets, packages, what was refused, and failed authentication."""
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
