"""The web application: routes, problems, request ids, and the reconciler running beside them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from service import errors, openapi
from service.api import (
    asking,
    audit,
    cluster,
    details,
    docs,
    exports,
    health,
    internal,
    job_list,
    jobs,
    packages,
    records,
    secrets,
    studies,
    tokens,
)
from service.api.context import Context
from service.gate import Gate
from service.loop import loop_of, stop_all
from service.methods import Methods
from service.middleware import OriginGuard

VERSION = "0.1.0"


def create_app(context: Context) -> FastAPI:
    """The application over a ready context. The reconciler starts and ends with it."""
    app = FastAPI(
        title="syncnorm",
        version=VERSION,
        summary="Distributed training with synchronized normalization",
        lifespan=_lifespan,
        redirect_slashes=False,
        generate_unique_id_function=openapi.operation_id,
        docs_url=None,
        redoc_url=None,
    )
    app.state.context = context
    errors.install(app)
    openapi.install(app)
    app.add_middleware(Methods)
    app.add_middleware(OriginGuard, trusted=context.settings.trusted)
    app.add_middleware(Gate, observe=context.metrics.request, trail=context.trail)
    of_jobs = (jobs, job_list, asking, details, exports, records)
    for part in (*of_jobs, studies, tokens, packages, secrets, cluster, audit, internal, health):
        app.include_router(part.router)
    app.include_router(internal.router_of_exports)
    docs.install(app)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    context: Context = app.state.context
    tick_s = context.settings.tick_s
    loops = [
        context.reconciler.loop(context.wake, tick_s),
        context.studies.loop(tick_s),
        loop_of("webhooks", context.webhooks.run),
        loop_of("retention", context.retention.run),
    ]
    # What they were at when the process ends is done again by the next one.
    loops += [loop_of(one.name, one.run) for one in context.background]
    context.metrics.watch_loops([loop.health for loop in loops])
    for loop in loops:
        loop.start()
    context.trail.start()
    try:
        yield
    finally:
        context.hub.close()
        stop_all(loops)
        context.trail.stop()
