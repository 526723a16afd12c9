"""/healthz: the process lives. /readyz: what it needs answers."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel

from service.api.context import Ctx
from service.api.route import Route

router = APIRouter(tags=["health"], route_class=Route)


class Health(BaseModel):
    status: str


class Readiness(BaseModel):
    """Whether jobs can run now. The API takes jobs even while the cluster or MLflow is away."""

    ready: bool
    database: bool
    cluster: bool
    mlflow: bool
    storage: bool
    """False for a while after it could not be used."""


@router.get("/healthz")
async def healthz() -> Health:
    return Health(status="ok")


@router.get("/readyz", response_model=Readiness, responses={503: {"model": Readiness}})
def readyz(ctx: Ctx) -> JSONResponse:
    parts = {
        "database": ctx.store.can_write(),
        "cluster": ctx.reconciler.view is not None,
        "mlflow": ctx.tracker.is_answering(),
        "storage": ctx.reconciler.ports.storage.is_usable(),
    }
    ready = all(parts.values())
    return JSONResponse(Readiness(ready=ready, **parts).model_dump(), status_code=200 if ready else 503)


@router.get("/metrics", response_class=PlainTextResponse)
def metrics(ctx: Ctx) -> Response:
    """For Prometheus. Names no job and no secret; owners appear by name."""
    return Response(ctx.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
