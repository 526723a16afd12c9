"""The web application: routes, problems, request ids, and the reconciler running beside them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from syncnorm import __version__
from syncnorm.service.api import docs, openapi
from syncnorm.service.api.dependencies import Context
from syncnorm.service.api.http import errors
from syncnorm.service.api.http.methods import Methods
from syncnorm.service.api.http.origin_guard import OriginGuard
from syncnorm.service.api.middleware import Gate
from syncnorm.service.api.resources import (
    attempt_reports as internal,
)
from syncnorm.service.api.resources import (
    audit,
    cluster,
    exports,
    health,
    job_list,
    jobs,
    packages,
    secrets,
    studies,
    tokens,
)
from syncnorm.service.api.resources import (
    events_and_logs as records,
)
from syncnorm.service.api.resources import (
    job_details as details,
)
from syncnorm.service.api.resources import (
    verbs as asking,
)
from syncnorm.service.background.loop import loop_of, stop_all

VERSION = __version__


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
