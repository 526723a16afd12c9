"""/healthz: the process lives. /readyz: what it needs answers."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel

from syncnorm.service.api.dependencies import Ctx
from syncnorm.service.api.http.route import Route

router = APIRouter(tags=["health"], route_class=Route)


class Health(BaseModel):
    status: str


class Readiness(BaseModel):
    """Whether jobs can run now. The API takes jobs even while the cluster or MLflow is away.

    role: one replica acts as leader; the others stand by and answer as it does.
    """

    ready: bool
    role: Literal["leader", "standby"]
    database: bool
    cluster: bool
    mlflow: bool
    storage: bool
    """False for a while after it could not be used."""
    reconciler: bool
    """False after three failed ticks in a row, or while one has taken over two minutes."""


@router.get("/healthz")
async def healthz() -> Health:
    return Health(status="ok")


@router.get("/readyz", response_model=Readiness, responses={503: {"model": Readiness}})
def readyz(ctx: Ctx) -> JSONResponse:
    parts = {
        "database": ctx.store.installation.can_write(),
        "cluster": ctx.reconciler.view is not None,
        "mlflow": ctx.tracker.is_answering(),
        "storage": ctx.reconciler.backends.storage.is_usable(),
        "reconciler": ctx.reconciler.health.is_good,
    }
    ready = all(parts.values())
    view = Readiness(ready=ready, role=ctx.reconciler.role, **parts)
    return JSONResponse(view.model_dump(), status_code=200 if ready else 503)


@router.get("/metrics", response_class=PlainTextResponse)
def metrics(ctx: Ctx) -> Response:
    """For Prometheus. Names no secret; owners appear by name, jobs by id while they can't be handled."""
    return Response(ctx.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
