"""The route class of the public API: strict queries and bodies, Accept, and conditional reads."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.responses import StreamingResponse

from syncnorm.service.api.http.accept import wanted
from syncnorm.service.api.http.etags import unless_unchanged
from syncnorm.service.api.http.json_body import parse
from syncnorm.service.api.http.query import check_query, parameters_of

JSON = "application/json"
Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class Route(APIRoute):
    """Wraps FastAPI's own handling of a request."""

    def get_route_handler(self) -> Handler:
        """Checks run first, so that a refused request has no effect."""
        answer, known = super().get_route_handler(), parameters_of(self.dependant)
        reads = self.path.startswith("/v1/") and "GET" in (self.methods or ())
        has_one_form = list(self.responses.get(200, {}).get("content", {JSON: {}})) == [JSON]
        has_model = self.body_field is not None

        async def handle(request: Request) -> Response:
            check_query(request, known)
            if reads and has_one_form:
                wanted(request, [JSON])
            if has_model and (raw := await request.body()):
                parse(raw)
            made = await answer(request)
            if reads and made.status_code == 200 and not isinstance(made, StreamingResponse):
                return unless_unchanged(request, made)
            return made

        return handle
