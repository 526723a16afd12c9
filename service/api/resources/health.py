"""/healthz: the process lives. /readyz: what it needs answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel

from syncnorm.service.api.components import Components
from syncnorm.service.api.dependencies import provide
from syncnorm.service.api.http.route import Route
from syncnorm.service.integrations.mlflow_runs import Tracker
from syncnorm.service.reconciler.reconciler import Reconciler
from syncnorm.service.telemetry.metrics import Metrics

router = APIRouter(tags=["health"], route_class=Route)


@dataclass(frozen=True)
class _Checks:
    can_write: Callable[[], bool]
    reconciler: Reconciler
    tracker: Tracker


def _checks(parts: Components) -> _Checks:
    return _Checks(parts.store.installation.can_write, parts.reconciler, parts.tracker)


Checks = Annotated[_Checks, Depends(provide(_checks))]
Scrape = Annotated[Metrics, Depends(provide(lambda parts: parts.metrics))]


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
def readyz(checks: Checks) -> JSONResponse:
    parts = {
        "database": checks.can_write(),
        "cluster": checks.reconciler.view is not None,
        "mlflow": checks.tracker.is_answering(),
        "storage": checks.reconciler.backends.storage.is_usable(),
        "reconciler": checks.reconciler.health.is_good,
    }
    ready = all(parts.values())
    view = Readiness(ready=ready, role=checks.reconciler.role, **parts)
    return JSONResponse(view.model_dump(), status_code=200 if ready else 503)


@router.get("/metrics", response_class=PlainTextResponse)
def metrics(metrics: Scrape) -> Response:
    """For Prometheus. Names no secret; owners appear by name, jobs by id while they can't be handled."""
    return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
