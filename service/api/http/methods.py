"""HEAD for every GET, OPTIONS everywhere, and the list of methods that a path has."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_ORDER = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE")


def allowed(scope: Scope) -> list[str]:
    """The methods of the scope's path, as for an Allow header; empty for an unknown path."""
    app: FastAPI = scope["app"]
    routes = (route for route in iter_route_contexts(app.routes) if route.methods)
    found = {method for route in routes if route.path_regex.match(scope["path"]) for method in route.methods or ()}
    if not found:
        return []
    found |= {"OPTIONS"} | ({"HEAD"} if "GET" in found else set())
    return sorted(found, key=_ORDER.index)


class MethodMiddleware:
    """Answers OPTIONS, and HEAD as GET without its body. Plain ASGI, so that streams pass through untouched."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method = scope.get("method")
        if method == "OPTIONS" and (methods := allowed(scope)):
            await Response(status_code=204, headers={"Allow": ", ".join(methods)})(scope, receive, send)
        elif method == "HEAD" and "GET" in allowed(scope):
            await self._head(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _head(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Ends the answer after its headers, also for a stream that GET would follow for hours."""
        is_sent = False

        async def headers_only(message: Message) -> None:
            nonlocal is_sent
            if message["type"] == "http.response.start":
                await send(message)
                await send({"type": "http.response.body", "body": b""})
                is_sent = True
            if is_sent:
                raise OSError("HEAD has no body")  # starlette treats this as a client that has gone

        scope["method"] = "GET"
        # A range has no meaning but for GET (RFC 9110, section 14.2).
        scope["headers"] = [(name, value) for name, value in scope["headers"] if name != b"range"]
        try:
            await self._app(scope, receive, headers_only)
        except Exception:
            if not is_sent:
                raise
        finally:
            scope["method"] = "HEAD"
