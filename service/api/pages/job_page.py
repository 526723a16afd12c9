"""GET /jobs/{id}: one job, with its progress, why it is where it is, its events and the end of its log."""

from __future__ import annotations

from collections.abc import Sequence

import yaml
from anyio import to_thread
from fastapi import APIRouter, Request, Response

from syncnorm.service.api.auth import Principal
from syncnorm.service.api.components import Components
from syncnorm.service.api.dependencies import visible_job
from syncnorm.service.api.http.route import Route
from syncnorm.service.api.pages.overview import REFRESH_S, Refresh
from syncnorm.service.api.pages.rendering import page, require_html
from syncnorm.service.api.pages.session import Parts, Viewer
from syncnorm.service.api.resources.job_details import explanation
from syncnorm.service.api.resources.results.checkpoints import checkpoint_views
from syncnorm.service.api.views.attempt_view import attempt_views
from syncnorm.service.api.views.job_view import JobView, job_view
from syncnorm.service.api.views.record_views import event_view, line_view
from syncnorm.service.cli.formatting import slowest_rank
from syncnorm.service.integrations.mlflow_note import certificate_line
from syncnorm.service.jobs.job import JobState
from syncnorm.service.store import Store
from syncnorm.trainer.contract.plan import guarantee_rows

router = APIRouter(include_in_schema=False, route_class=Route)
_REFRESH_OVER_S = 60
"""A job that has ended may still be exported or retried."""
_ATTEMPTS, _BLOCKERS, _CHECKPOINTS, _METRICS, _EVENTS, _LINES = 5, 5, 5, 30, 25, 100
"""What is shown of each, the latest."""
_WHILE_ACTIVE = ("logs -f", "show", "pause", "cancel")
_COMMANDS = {
    JobState.QUEUED: ("explain", "pause", "cancel"),
    JobState.PAUSED: ("resume", "cancel"),
    JobState.SUCCEEDED: ("get", "export", "logs"),
    JobState.FAILED: ("logs", "retry", "get"),
    JobState.CANCELLED: ("retry", "get"),
}
"""What a user may do next in each state."""


@router.get("/jobs/{job_id}")
async def job_page(
    job_id: str,
    request: Request,
    parts: Parts,
    who: Viewer,
    refresh: Refresh = "on",
) -> Response:
    require_html(request, f"/v1/jobs/{job_id[:64]}")
    return await to_thread.run_sync(_job_page, job_id, request, parts, who, refresh, limiter=parts.lists)


def _job_page(job_id: str, request: Request, parts: Components, who: Principal, refresh: str) -> Response:
    store = parts.store
    job = visible_job(store.jobs, who, job_id)
    view = job_view(job, parts.mlflow_uri)
    metrics = {name: value for name, value in sorted(view.progress.metrics.items()) if not name.startswith("norm/")}
    attempts, checkpoints = store.attempts.of_job(job_id), checkpoint_views(store.history.checkpoints(job_id))
    why = explanation(job, store.attempts, parts.reconciler)
    pause_s = _REFRESH_OVER_S if job.is_terminal else REFRESH_S
    return page(
        "job.html",
        request,
        who=who,
        refresh_s=pause_s if refresh == "on" else 0,
        now=store.now(),
        job=view,
        is_over=job.is_terminal,
        why=why,
        names=_names(store, who, why.blockers[:_BLOCKERS]),
        metrics=dict(list(metrics.items())[:_METRICS]),
        slowest=slowest_rank(view.progress.metrics),
        more_metrics=max(0, len(metrics) - _METRICS),
        attempts=attempt_views(attempts[-_ATTEMPTS:]),
        checkpoints=checkpoints[:_CHECKPOINTS],
        more_checkpoints=max(0, len(checkpoints) - _CHECKPOINTS),
        certificate=_certificate(view),
        guarantees=guarantee_rows(job.guarantees),
        events=[event_view(one) for one in store.history.events(job_id, limit=_EVENTS, tail=True)][::-1],
        lines=[line_view(one) for one in store.history.lines(job_id, limit=_LINES, tail=True)],
        commands=_COMMANDS.get(job.state, _WHILE_ACTIVE),
        spec=yaml.safe_dump(view.spec, sort_keys=False, allow_unicode=True),
    )


def _names(store: Store, who: Principal, ids: Sequence[str]) -> dict[str, str]:
    """Names by id, of the jobs that the viewer may see."""
    found = [job for one in ids if (job := store.jobs.get(one)) is not None]
    return {job.id: job.name for job in found if who.may_see(job)}


def _certificate(job: JobView) -> str:
    try:
        return certificate_line(job.model.certificate) if job.model else ""
    except (KeyError, TypeError, ValueError):  # of another version, or a damaged row
        return "in a form that this version can't read"
