"""GET /: what runs, what waits and why, the capacity, and what has ended lately.

The work for a page does not grow with the number of jobs: each table has its limit, and says how many more there are.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from anyio import to_thread
from fastapi import APIRouter, FastAPI, Query, Request, Response

from syncnorm.service.api.auth import Principal
from syncnorm.service.api.components import Components
from syncnorm.service.api.http.route import Route
from syncnorm.service.api.pages.rendering import page, require_html
from syncnorm.service.api.pages.session import Parts, Viewer
from syncnorm.service.api.resources.cluster import ClusterView, cluster_view
from syncnorm.service.api.resources.health import Readiness, health_checks, readiness
from syncnorm.service.api.resources.job_details import ExplanationView, explanation
from syncnorm.service.api.views.job_view import JobView, ListedJobView, job_view, listed_view
from syncnorm.service.jobs.job import ACTIVE, Job, JobState
from syncnorm.service.scheduling.schedule import Schedule
from syncnorm.service.store import JobQuery
from syncnorm.trainer.contract.text import counted

router = APIRouter(include_in_schema=False, route_class=Route)
REFRESH_S = 5
_READINESS_S = 10.0
_RUNNING, _QUEUED, _FAILED, _SUCCEEDED, _HOSTS = 25, 15, 8, 5, 12
"""Rows of the tables."""
Refresh = Annotated[Literal["on", "off"], Query(description="Whether the page refreshes itself. Default: on.")]


def install(app: FastAPI) -> None:
    app.state.recent_readiness = RecentReadiness()
    app.include_router(router)


class RecentReadiness:
    """The answer of /readyz, asked for by pages at most every 10 s. While one asks, others get the answer before."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._latest: tuple[float, Readiness] | None = None

    def get(self, parts: Components) -> Readiness | None:
        """None: the first answer is still to come."""
        is_old = self._latest is None or time.monotonic() - self._latest[0] > _READINESS_S
        if is_old and self._lock.acquire(blocking=False):
            try:
                self._latest = time.monotonic(), readiness(health_checks(parts))
            finally:
                self._lock.release()
        return self._latest[1] if self._latest else None


@dataclass(frozen=True)
class WaitingJob:
    """A row of the queue. needs: its resources, in words."""

    job: JobView
    why: ExplanationView
    position: int
    needs: str


@router.get("/")
async def overview(
    request: Request,
    parts: Parts,
    who: Viewer,
    refresh: Refresh = "on",
) -> Response:
    require_html(request, "/v1/jobs and /v1/cluster")
    return await to_thread.run_sync(_overview, request, parts, who, refresh, limiter=parts.lists)


def _overview(request: Request, parts: Components, who: Principal, refresh: str) -> Response:
    owner = None if who.is_admin else who.name
    jobs, links = parts.store.jobs, parts.mlflow_uri

    def listed(limit: int, *states: JobState) -> list[ListedJobView]:
        # In this order the index over owners and states serves, whatever else an owner has.
        query = JobQuery(states=states, owner=owner, sort="-finished_at", limit=limit, full=False)
        return [listed_view(one, links) for one in jobs.find(query)]

    counts = jobs.count_by_state(owner)
    cluster, waiting = cluster_view(parts.reconciler, counts), _waiting(parts, owner)
    return page(
        "overview.html",
        request,
        who=who,
        refresh_s=REFRESH_S if refresh == "on" else 0,
        now=parts.store.now(),
        counts=counts,
        active=sum(counts[state] for state in ACTIVE),
        cluster=cluster,
        capacity=_capacity(cluster),
        hosts=_HOSTS,
        ready=request.app.state.recent_readiness.get(parts),
        running=listed(_RUNNING, *sorted(ACTIVE)),
        waiting=waiting,
        head=_head(waiting, parts.reconciler.schedule),
        failed=listed(_FAILED, JobState.FAILED),
        succeeded=listed(_SUCCEEDED, JobState.SUCCEEDED),
    )


def _capacity(cluster: ClusterView) -> list[tuple[str, float, float]]:
    """(kind, in all, free) of what the hosts have."""
    nodes = cluster.nodes
    cpus = ("CPUs", sum(node.cpus for node in nodes), sum(node.free_cpus for node in nodes))
    gpus = ("GPUs", sum(node.gpus for node in nodes), sum(node.free_gpus for node in nodes))
    return [one for one in (cpus, gpus) if one[1]]


def _waiting(parts: Components, owner: str | None) -> list[WaitingJob]:
    """The front of the queue, as the scheduler has it."""
    rows = []
    for job, ahead in parts.reconciler.queue.front(_QUEUED, owner):
        why = explanation(job, parts.store.attempts, parts.reconciler)
        rows.append(WaitingJob(job_view(job, parts.mlflow_uri), why, ahead + 1, _needs(job)))
    return rows


def _head(waiting: Sequence[WaitingJob], schedule: Schedule | None) -> WaitingJob | None:
    """The one that the scheduler considers first. It also looks at how much its owner uses, which places don't."""
    order = {job_id: index for index, job_id in enumerate(schedule.waits)} if schedule else {}
    return min(waiting, key=lambda row: order.get(row.job.id, len(order)), default=None)


def _needs(job: Job) -> str:
    each = f"{counted(job.cpus_per_worker, 'CPU')} each"
    if job.gpus_per_worker:
        each = f"{counted(job.gpus_per_worker, 'GPU')} and {each}"
    return f"{counted(job.workers, 'worker')}, {each}"
