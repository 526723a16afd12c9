"""Around every request: a request id, a size limit, a measured duration, and an audit entry if it was refused."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from syncnorm.service.api.audit_trail import AuditTrail, refusals

MAX_BODY = 2**20
MAX_PACKAGE = 64 * 2**20


class RequestMiddleware:
    """Plain ASGI, so that streams pass through untouched."""

    def __init__(self, app: ASGIApp, observe: Callable[[str, str, int, float], None], audit_trail: AuditTrail) -> None:
        """observe: called with method, route, status and seconds."""
        self._app = app
        self._observe = observe
        self._trail = audit_trail

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = f"req_{uuid.uuid4().hex}"
        scope.setdefault("state", {})["request_id"] = request_id
        began = time.perf_counter()
        status = 500

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        try:
            await self._app(scope, _limited(scope, receive), answer)
        finally:
            route = getattr(scope.get("route"), "path", "unmatched")
            self._observe(scope["method"], route, status, time.perf_counter() - began)
            for entry in refusals(scope, status):
                self._trail.add(entry)


def _limited(scope: Scope, receive: Receive) -> Receive:
    most = MAX_PACKAGE if scope["path"].startswith("/v1/packages/") else MAX_BODY
    declared = Headers(scope=scope).get("content-length", "")
    size = 0

    async def limited() -> Message:
        nonlocal size
        if declared.isdigit() and int(declared) > most:
            raise HTTPException(413, f"The body must not exceed {most} bytes, got {declared}.")
        message = await receive()
        size += len(message.get("body", b""))
        if size > most:
            raise HTTPException(413, f"The body must not exceed {most} bytes.")
        return message

    return limited
