"""/healthz: the process is alive. /readyz: everything that jobs need is available. /metrics: for Prometheus."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Response
from fastapi.responses import JSONResponse, PlainTextResponse

from syncnorm.service.api.components import Components
from syncnorm.service.api.dependencies import provide
from syncnorm.service.api.http.route import Route
from syncnorm.service.api.views.view import View
from syncnorm.service.integrations.mlflow_runs import Tracker
from syncnorm.service.reconciler.reconciler import Reconciler
from syncnorm.service.telemetry.metrics import Metrics

router = APIRouter(tags=["health"], route_class=Route)


@dataclass(frozen=True)
class HealthChecks:
    """What is asked whether jobs can run."""

    can_write: Callable[[], bool]
    reconciler: Reconciler
    tracker: Tracker


def health_checks(parts: Components) -> HealthChecks:
    return HealthChecks(parts.store.installation.can_write, parts.reconciler, parts.tracker)


Checks = Annotated[HealthChecks, Depends(provide(health_checks))]
Scrape = Annotated[Metrics, Depends(provide(lambda parts: parts.metrics))]


class Health(View):
    """The process is alive."""

    status: str
    """Always `ok`."""


class Readiness(View):
    """Whether jobs can run now. You can submit jobs even while the cluster or MLflow is unavailable."""

    ready: bool
    """Whether all of the following are true."""
    role: Literal["leader", "standby"]
    """`leader`: this replica schedules and launches. `standby`: it answers requests, and takes over if the leader
    dies."""
    database: bool
    """Whether the database can be written to."""
    cluster: bool
    """Whether Ray answers."""
    mlflow: bool
    """Whether MLflow answers."""
    storage: bool
    """False for a while after the storage could not be used."""
    reconciler: bool
    """False after three failed ticks in a row, or while one has taken over two minutes."""


@router.get("/healthz")
async def healthz() -> Health:
    """Whether the process is alive. It asks nothing else, so use it for restarts."""
    return Health(status="ok")


@router.get("/readyz", response_model=Readiness, responses={503: {"model": Readiness}})
def readyz(checks: Checks) -> JSONResponse:
    """Whether jobs can run now: 503 while something that they need does not answer."""
    view = readiness(checks)
    return JSONResponse(view.model_dump(), status_code=200 if view.ready else 503)


def readiness(checks: HealthChecks) -> Readiness:
    """Asks the database, MLflow and the storage, which takes up to two seconds while one is silent."""
    parts = available_parts(checks)
    return Readiness(ready=all(parts.values()), role=checks.reconciler.role, **parts)


def available_parts(checks: HealthChecks) -> dict[str, bool]:
    """Whether each part that jobs need is available."""
    return {
        "database": checks.can_write(),
        "cluster": checks.reconciler.view is not None,
        "mlflow": checks.tracker.is_answering(),
        "storage": checks.reconciler.backends.storage.is_usable(),
        "reconciler": checks.reconciler.health.is_good,
    }


@router.get("/metrics", response_class=PlainTextResponse)
def metrics(metrics: Scrape) -> Response:
    """Metrics for Prometheus. Owners appear by name, and jobs by id while they can't be handled; no secrets."""
    return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
