"""/v1/tokens: made, listed and revoked by admins."""

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
TokenId = Annotated[str, Path(max_length=20, pattern=r"^[0-9a-f]+$")]


def _as_text(value: object) -> object:
    """A number would be read as seconds since 1970, which nobody means."""
    if value is not None and not isinstance(value, str | datetime):
        raise ValueError(f"must be a time such as 2027-01-31T00:00:00Z, or null; got {value!r}")
    return value


class TokenRequest(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    owner: Owner
    scopes: Annotated[list[Literal["read", "submit", "admin"]], Field(min_length=1, max_length=3)] = ["read", "submit"]
    expires_at: Annotated[AwareDatetime | None, BeforeValidator(_as_text)] = None
    """RFC 3339, e.g. 2027-01-31T00:00:00Z: in the future, and at most ten years ahead. Null: until it is revoked."""


class TokenView(BaseModel):
    id: str
    owner: str
    scopes: list[str]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    problem: str | None = None
    """What of it can't be read, where the database was damaged. Revoke the token, and make a new one."""


class NewTokenView(TokenView):
    """token is shown here and never again."""

    token: str


class TokenPage(BaseModel):
    items: list[TokenView]
    next_cursor: str | None = None


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
    return TokenPage(items=[_view(token) for token in tokens.table.all()])


@router.delete("/{token_id}", status_code=204)
def revoke_token(token_id: TokenId, tokens: Tokens, who: Admin) -> None:
    """The token stops working at once."""
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
        raise ApiError(422, "invalid_request", "The token would be of no use; none was made.", errors=errors)
    return expires_at.astimezone(UTC)
