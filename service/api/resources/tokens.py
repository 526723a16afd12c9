"""/v1/tokens: create, list and revoke tokens. For admins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Path
from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from syncnorm.service.api.auth import Authenticator, new_token
from syncnorm.service.api.components import Components
from syncnorm.service.api.dependencies import Admin, provide
from syncnorm.service.api.http.errors import ApiError, FieldProblem, not_found
from syncnorm.service.api.http.route import Route
from syncnorm.service.api.views.view import View
from syncnorm.service.store import StoredToken
from syncnorm.service.store.administration.tokens import TokenTable

router = APIRouter(prefix="/v1/tokens", tags=["tokens"], route_class=Route)


@dataclass(frozen=True)
class _Tokens:
    table: TokenTable
    now: Callable[[], datetime]
    authenticator: Authenticator


def _tokens(parts: Components) -> _Tokens:
    return _Tokens(parts.store.tokens, parts.store.now, parts.authenticator)


Tokens = Annotated[_Tokens, Depends(provide(_tokens))]
Owner = Annotated[str, StringConstraints(min_length=1, max_length=120, pattern=r"^[A-Za-z0-9][A-Za-z0-9@._-]*$")]
LONGEST = timedelta(days=3650)
TokenId = Annotated[str, Path(max_length=20, pattern=r"^[0-9a-f]+$", description="Id of the token.")]


def _as_text(value: object) -> object:
    """Refuses numbers, which pydantic would read as seconds since 1970."""
    if value is not None and not isinstance(value, str | datetime):
        raise ValueError(f"must be a time such as 2027-01-31T00:00:00Z, or null; got {value!r}")
    return value


class TokenRequest(BaseModel):
    """A token to make."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    owner: Owner
    """Who the token is for; jobs submitted with it belong to this name. No default."""
    scopes: Annotated[list[Literal["read", "submit", "admin"]], Field(min_length=1, max_length=3)] = ["read", "submit"]
    """What it allows: `read`, `submit` (which includes changes of one's own jobs), `admin` (everything, for all
    owners). Default: read and submit, what a user needs."""
    expires_at: Annotated[AwareDatetime | None, BeforeValidator(_as_text)] = None
    """When it stops working, in RFC 3339, for example 2027-01-31T00:00:00Z: in the future, and at most ten years ahead.
    Default: null, until it is revoked."""


class TokenView(View):
    """A token, without its secret."""

    id: str
    """Id of the token, for revoking it and in the audit."""
    owner: str
    """Who the token is for."""
    scopes: list[str]
    """What it allows."""
    created_at: datetime
    """When it was made."""
    expires_at: datetime | None
    """When it stops working; null: not before it is revoked."""
    revoked_at: datetime | None
    """When it was revoked; null: it was not."""
    problem: str | None = None
    """Which part of it can't be read, if the database was damaged: revoke the token. null if it can."""


class NewTokenView(TokenView):
    """A new token. Its secret is shown here and never again."""

    token: str
    """What you send as `Authorization: Bearer …`. Keep it: it can't be shown again."""


class TokenPage(View):
    """All tokens."""

    items: list[TokenView]
    """The tokens, without their secrets."""
    next_cursor: str | None = None
    """Always null: all of them are on this page."""


@router.post("", status_code=201)
def create_token(body: TokenRequest, tokens: Tokens, who: Admin) -> NewTokenView:
    """Make a token. It is shown in this answer and never again."""
    now = tokens.now()
    expires_at = None if body.expires_at is None else _within_bounds(body.expires_at, now)
    token, stored = new_token(body.owner, list(dict.fromkeys(body.scopes)), now, expires_at)
    tokens.table.add(stored, who.actor)
    return NewTokenView(**_view(stored).model_dump(), token=token)


@router.get("")
def list_tokens(tokens: Tokens, _: Admin) -> TokenPage:
    """All tokens, without their secrets, those that were revoked included."""
    return TokenPage(items=[_view(token) for token in tokens.table.all()])


@router.delete("/{token_id}", status_code=204)
def revoke_token(token_id: TokenId, tokens: Tokens, who: Admin) -> None:
    """Revoke a token. It stops working at once."""
    if not tokens.table.revoke(token_id, who.actor):
        raise not_found("token", token_id)
    tokens.authenticator.forget(token_id)


def _view(token: StoredToken) -> TokenView:
    return TokenView(**{name: getattr(token, name) for name in TokenView.model_fields})


def _within_bounds(expires_at: datetime, now: datetime) -> datetime:
    """In UTC. Raises: ApiError 422."""
    if not now < expires_at <= now + LONGEST:
        must = f"must lie in the future and at most {LONGEST.days // 365} years ahead of {now:%Y-%m-%dT%H:%M:%SZ}"
        errors = [FieldProblem(pointer="/expires_at", detail=f"{must}; got {expires_at.isoformat()}")]
        raise ApiError(422, "invalid_request", "No token was created, because it could never be used.", errors=errors)
    return expires_at.astimezone(UTC)
