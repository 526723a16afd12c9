"""The web application: routes, problems, request ids, and the reconciler running beside them."""

from __future__ import annotations

import threading
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response

from service import errors
from service.api import health, internal, jobs, records
from service.api.context import Context

VERSION = "0.1.0"


def create_app(context: Context) -> FastAPI:
    """The application over a ready context. The reconciler starts and ends with it."""
    app = FastAPI(
        title="syncnorm",
        version=VERSION,
        summary="Distributed training with synchronized normalization",
        lifespan=_lifespan,
        responses={
            code: {"model": errors.ProblemDetails, "content": {errors.MEDIA_TYPE: {}}} for code in ("4XX", "5XX")
        },
    )
    app.state.context = context
    errors.install(app)
    app.middleware("http")(_name_request)
    for part in (jobs, records, internal, health):
        app.include_router(part.router)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    context: Context = app.state.context
    stop = threading.Event()
    args = (stop, context.wake, context.settings.tick_s)
    loop = threading.Thread(target=context.reconciler.run, args=args, name="reconciler")
    loop.start()
    try:
        yield
    finally:
        stop.set()
        context.wake.set()
        context.hub.close()
        loop.join()


async def _name_request(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    request.state.request_id = f"req_{uuid.uuid4().hex}"
    response = await call_next(request)
    response.headers["X-Request-ID"] = request.state.request_id
    return response
