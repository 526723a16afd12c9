"""The session of a browser: a cookie that opens the pages, and nothing else.

Cookies know no ports: each server on this host gets those of all others, that of a job included. So ours does not hold
the token. It names the token and the end of the session, sealed with the token's digest. The API takes no cookie. A
session ends with its token: the record is read for every page, so one that was revoked or expired opens none.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

from fastapi import Depends, Request, Response
from starlette.concurrency import run_in_threadpool

from syncnorm.service.api.auth import Authenticator, Principal, UnauthorizedError, holder, require_standing
from syncnorm.service.api.components import Components
from syncnorm.service.api.dependencies import admit, authorize, provide

Parts = Annotated[Components, Depends(provide(lambda parts: parts))]
LIFE_S = 12 * 3600
_VALUE = re.compile(r"([0-9a-z]{1,20})\.([0-9]{1,11})\.([0-9a-f]{64})")
_SIGN_IN = "Sign in with your token to see this page."


@dataclass(frozen=True)
class Sessions:
    """now: the time of the database, by which tokens expire."""

    authenticator: Authenticator
    now: Callable[[], datetime]

    def begin(self, token: str) -> tuple[Principal, str]:
        """(who signs in, the value of their cookie). Raises: UnauthorizedError if the token is not valid."""
        who = self.authenticator.authenticate(f"Bearer {token}")
        record = self.authenticator.record(who.token_id or "")
        if record is None:
            raise UnauthorizedError(_SIGN_IN, "unknown token or wrong secret")
        ends_at = int(self.now().timestamp()) + LIFE_S
        return who, f"{record.id}.{ends_at}.{_seal(record.digest, record.id, ends_at)}"

    def resume(self, value: str) -> Principal:
        """Who has the cookie with this value. Raises: UnauthorizedError."""
        found = _VALUE.fullmatch(value)
        if found is None:
            raise UnauthorizedError(_SIGN_IN, "no token")
        token_id, ends_at, seal = found[1], int(found[2]), found[3]
        record = self.authenticator.record(token_id)
        sealed = _seal(self.authenticator.digest_of(record), token_id, ends_at)
        if not hmac.compare_digest(seal, sealed) or record is None:
            raise UnauthorizedError(_SIGN_IN, "a session that this service did not begin")
        require_standing(record, now := self.now())
        if datetime.fromtimestamp(ends_at, UTC) <= now:
            raise UnauthorizedError("Your session is over. Sign in again.", "session over", record)
        return holder(record)


def _seal(digest: str, token_id: str, ends_at: int) -> str:
    return hmac.new(digest.encode(), f"page session {token_id} {ends_at}".encode(), hashlib.sha256).hexdigest()


def sessions(parts: Components) -> Sessions:
    return Sessions(parts.authenticator, parts.store.now)


def set_cookie(request: Request, answer: Response, value: str) -> None:
    """An empty value ends the session in this browser."""
    answer.set_cookie(
        cookie_name(request),
        value,
        max_age=LIFE_S if value else 0,
        httponly=True,
        samesite="strict",
        secure=_is_encrypted(request),
    )


def cookie_name(request: Request) -> str:
    """With the port, so that two services on one host don't sign each other's users out."""
    return f"syncnorm_session_{request.url.port or 0}"


def _is_encrypted(request: Request) -> bool:
    """Whether the browser reached us over TLS, which may end at a proxy: then its Origin tells."""
    origin = request.headers.get("origin") or request.app.state.context.settings.public_url or ""
    return request.url.scheme == "https" or origin.startswith("https://")


async def _viewer(request: Request) -> Principal:
    """Raises: ApiError 401 without a session or token, 429 above the rate limit, 403 without the scope `read`."""
    parts: Components = request.app.state.context
    if not parts.authenticator.is_on or "authorization" in request.headers:
        return await authorize(request, "read")
    value = request.cookies.get(cookie_name(request), "")
    try:
        who = await run_in_threadpool(sessions(parts).resume, value)
    except UnauthorizedError as error:
        request.state.denied = error
        raise
    return admit(request, who, "read")


Viewer = Annotated[Principal, Depends(_viewer)]
"""Who looks at a page."""
