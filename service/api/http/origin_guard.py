"""Refuses requests of foreign web pages, and tells browsers what they may do with our answers."""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from syncnorm.service.api.http.errors import ApiError, problem
from syncnorm.service.origins import Head, Refusal, Trusted, find_refusal, find_wrong_body

_POLICY = "; ".join(
    [
        "default-src 'none'",
        # Reports of studies are one file each.
        "style-src 'unsafe-inline'",
        "img-src data:",
        *("base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"),
    ]
)
_ANSWERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    # Not no-referrer: browsers would then send `Origin: null` from our own pages.
    "Referrer-Policy": "same-origin",
}
"""Headers of every answer that does not set them itself."""


class OriginGuard:
    """Passes on only requests that a user may have sent. Plain ASGI, so that streams pass through untouched."""

    def __init__(self, app: ASGIApp, trusted: Trusted) -> None:
        self._app = app
        self._trusted = trusted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _ANSWERS.items():
                    headers.setdefault(name, value)
            await send(message)

        head = head_of(scope)
        refusal = find_refusal(head, self._trusted) or find_wrong_body(head)
        app = self._app if refusal is None else problem(Request(scope), _error(refusal))
        await app(scope, receive, answer)


def head_of(scope: Scope) -> Head:
    address = (scope.get("server") or ("",))[0]
    return Head(scope["method"], scope["path"], scope["scheme"], address, Headers(scope=scope))


def _error(refusal: Refusal) -> ApiError:
    return ApiError(refusal.status, refusal.code, refusal.detail)
