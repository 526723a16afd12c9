"""The web application: its routes, middleware and error answers, and the background loops it starts and stops."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from syncnorm import __version__
from syncnorm.service.api import docs, openapi
from syncnorm.service.api.components import Background, Components
from syncnorm.service.api.http import errors
from syncnorm.service.api.http.methods import MethodMiddleware
from syncnorm.service.api.http.origin_guard import OriginGuard
from syncnorm.service.api.middleware import RequestMiddleware
from syncnorm.service.api.pages import job_page, overview, sign_in
from syncnorm.service.api.pages.rendering import problem_page
from syncnorm.service.api.resources import (
    attempt_reports,
    audit,
    cluster,
    events_and_logs,
    exports,
    health,
    job_details,
    job_list,
    jobs,
    packages,
    secrets,
    studies,
    tokens,
    verbs,
)
from syncnorm.service.api.resources.results import checkpoints, files
from syncnorm.service.api.resources.running import process_stacks, rank_profiles
from syncnorm.service.background.loop import stop_all

VERSION = __version__


def create_app(context: Components) -> FastAPI:
    """The application for a ready context. It starts and stops the background loops."""
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
    errors.install(app, problem_page)
    openapi.install(app)
    app.add_middleware(MethodMiddleware)
    app.add_middleware(OriginGuard, trusted=context.settings.trusted)
    app.add_middleware(RequestMiddleware, observe=context.metrics.request, audit_trail=context.audit_trail)
    of_jobs = (
        jobs,
        job_list,
        verbs,
        job_details,
        checkpoints,
        files,
        exports,
        events_and_logs,
        process_stacks,
        rank_profiles,
    )
    for part in (*of_jobs, studies, tokens, packages, secrets, cluster, audit, attempt_reports, health):
        app.include_router(part.router)
    app.include_router(attempt_reports.router_of_exports)
    docs.install(app)
    for pages in (job_page, sign_in):
        app.include_router(pages.router)
    overview.install(app)
    context.metrics.watch_readiness(lambda: health.available_parts(health.health_checks(context)))
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    context: Components = app.state.context
    tick_s = context.settings.tick_s
    loops = [
        context.reconciler.loop(context.wake, tick_s),
        context.studies.loop(tick_s),
    ]
    # Work that is interrupted when the process ends is repeated by the next one.
    others: list[Background] = [context.webhooks, context.retention, *context.background]
    loops += [loop for one in others for loop in one.loops()]
    context.metrics.watch_loops([loop.health for loop in loops])
    for loop in loops:
        loop.start()
    context.audit_trail.start()
    try:
        yield
    finally:
        context.end_followers()
        stop_all(loops)
        context.audit_trail.stop()
