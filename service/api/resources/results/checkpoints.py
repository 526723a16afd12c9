"""/v1/jobs/{id}/checkpoints: from which steps a job can be resumed and exported, and which of them is the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends

from syncnorm.service.api.components import Components
from syncnorm.service.api.dependencies import Reader, provide, visible_job
from syncnorm.service.api.http.route import Route
from syncnorm.service.api.views.view import NonFinite, Number, View
from syncnorm.service.store import StoredCheckpoint
from syncnorm.service.store.tables.history import HistoryTable
from syncnorm.service.store.tables.jobs import JobTable

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["jobs"], route_class=Route)


@dataclass(frozen=True)
class _Checkpoints:
    jobs: JobTable
    history: HistoryTable


def _checkpoints(parts: Components) -> _Checkpoints:
    return _Checkpoints(parts.store.jobs, parts.store.history)


_WORDS = {word.value: word for word in NonFinite}
Checkpoints = Annotated[_Checkpoints, Depends(provide(_checkpoints))]


class CheckpointView(View):
    """A complete checkpoint."""

    attempt: int
    """Number of the attempt that wrote it."""
    step: int
    """Finished optimizer steps."""
    epoch: int
    """Finished epochs."""
    metrics: dict[str, Number] | None
    """Metrics of the epoch that this step ends, as `val/loss`; empty in the middle of an epoch, null for checkpoints of
    versions that did not record them."""
    best: bool | None
    """Whether it is the best one, as train.keep_best judges: the one that `export.checkpoint: best` means. null while
    nothing was judged, because the spec has no train.keep_best or no epoch has ended."""
    path: str
    """Its folder on the storage."""
    digest: str
    """Digest of its manifest, which holds the digests of its files."""
    size_bytes: int
    """Size of all its files."""
    at: datetime
    """When the service heard of it."""
    problem: str | None = None
    """Which part of its row can't be read, if the database was damaged; null if it can."""


class CheckpointPage(View):
    """All checkpoints of a job."""

    items: list[CheckpointView]
    """The checkpoints, the furthest first."""
    next_cursor: str | None = None
    """Always null: all of them are on this page."""


@router.get("/checkpoints")
def get_checkpoints(job_id: str, checkpoints: Checkpoints, who: Reader) -> CheckpointPage:
    """Complete checkpoints, the furthest first, with what was measured at each."""
    visible_job(checkpoints.jobs, who, job_id)
    return CheckpointPage(items=checkpoint_views(checkpoints.history.checkpoints(job_id)))


def checkpoint_views(found: Sequence[StoredCheckpoint]) -> list[CheckpointView]:
    """The newest one knows which is the best. Where two attempts wrote a checkpoint of that step, it is the later."""
    newest = max(found, key=lambda one: (one.attempt, one.step), default=None)
    best_step = newest.best_step if newest else None
    best = max((one.attempt for one in found if one.step == best_step), default=None)
    names = CheckpointView.model_fields.keys() - {"best", "metrics"}
    return [
        CheckpointView(
            best=None if best_step is None else (one.step, one.attempt) == (best_step, best),
            metrics=None if one.metrics is None else _numbers(one.metrics),
            **{name: getattr(one, name) for name in names},
        )
        for one in found
    ]


def _numbers(stored: Mapping[str, Any]) -> dict[str, Number]:
    """What a damaged row holds besides is left out."""
    found = {name: _WORDS.get(value, value) if isinstance(value, str) else value for name, value in stored.items()}
    return {name: value for name, value in found.items() if isinstance(value, int | float | NonFinite)}
