"""/healthz: the process lives. /readyz: what it needs answers."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from service.api.context import Ctx

router = APIRouter(tags=["health"])


class Health(BaseModel):
    status: str


class Readiness(BaseModel):
    """Whether jobs can run now. The API takes jobs even while the cluster or MLflow is away."""

    ready: bool
    database: bool
    cluster: bool
    mlflow: bool


@router.get("/healthz")
def healthz() -> Health:
    return Health(status="ok")


@router.get("/readyz", response_model=Readiness, responses={503: {"model": Readiness}})
def readyz(ctx: Ctx) -> JSONResponse:
    parts = {
        "database": ctx.store.is_answering(),
        "cluster": ctx.reconciler.view is not None,
        "mlflow": ctx.tracker.is_answering(),
    }
    ready = all(parts.values())
    return JSONResponse(Readiness(ready=ready, **parts).model_dump(), status_code=200 if ready else 503)
