"""What the endpoints work with, and who is asking."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from service.errors import not_found
from service.hub import Hub
from service.jobs import Job
from service.reconcile import Reconciler
from service.settings import Settings
from service.store import Store
from service.tracking import Tracker


@dataclass(frozen=True)
class Context:
    """mlflow_uri: for links, as a browser reaches it. local_paths: workers see the same files as this process."""

    settings: Settings
    store: Store
    reconciler: Reconciler
    tracker: Tracker
    hub: Hub
    wake: threading.Event
    mlflow_uri: str
    local_paths: bool

    def changed(self, job_id: str) -> None:
        """Something about the job was written: look at it soon, and tell its followers."""
        self.wake.set()
        self.hub.changed(job_id)


def get_context(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


Ctx = Annotated[Context, Depends(get_context)]


@dataclass(frozen=True)
class Principal:
    """Who is asking, and what they may."""

    name: str
    scopes: frozenset[str]

    @property
    def is_admin(self) -> bool:
        return "admin" in self.scopes

    def may_see(self, job: Job) -> bool:
        return self.is_admin or job.owner == self.name


LOCAL = Principal("local", frozenset({"read", "submit", "admin"}))
"""Everybody, where authentication is off."""


def get_principal() -> Principal:
    return LOCAL


Who = Annotated[Principal, Depends(get_principal)]


def visible_job(ctx: Context, who: Principal, job_id: str) -> Job:
    """Raises: ApiError 404, the same for a job that is not there and for one of somebody else."""
    job = ctx.store.job(job_id)
    if job is None or not who.may_see(job):
        raise not_found("job", job_id)
    return job
