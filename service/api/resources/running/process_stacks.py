"""/v1/jobs/{id}/stacks: what each process of a job is doing now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from starlette.concurrency import run_in_threadpool

from syncnorm.service.api.change_notifier import ChangeNotifier
from syncnorm.service.api.components import Components
from syncnorm.service.api.dependencies import Reader, provide
from syncnorm.service.api.http.errors import ApiError, refused
from syncnorm.service.api.http.route import Route
from syncnorm.service.api.resources.running.process_answers import last_attempt, once_complete
from syncnorm.service.api.views.view import View
from syncnorm.service.jobs.actions import allowed
from syncnorm.service.jobs.job import Attempt, Job
from syncnorm.service.store import StoredStacks
from syncnorm.service.store.tables.attempts import AttemptTable
from syncnorm.service.store.tables.jobs import JobTable
from syncnorm.service.store.tables.stacks import StackTable

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["jobs"], route_class=Route)


@dataclass(frozen=True)
class _Running:
    jobs: JobTable
    attempts: AttemptTable
    stacks: StackTable
    notifier: ChangeNotifier
    requests: ChangeNotifier


def _running(parts: Components) -> _Running:
    store = parts.store
    return _Running(store.jobs, store.attempts, store.stacks, parts.notifier, parts.requests)


Running = Annotated[_Running, Depends(provide(_running))]


class ThreadView(View):
    """One thread of a process."""

    name: str
    """Name of the thread."""
    stack: str
    """Its Python stack, most recent call last, as in a traceback."""


class ProcessView(View):
    """One process of an attempt."""

    rank: int
    """Its rank; -1 is the driver."""
    at: datetime
    """When its answer came."""
    threads: list[ThreadView]
    """Its threads, the one that trains first."""
    problem: str | None
    """What of the stored answer can't be read; null: nothing."""


class StacksView(View):
    """What the processes of an attempt are doing."""

    attempt: int
    """Number of the attempt."""
    is_running: bool
    """Whether it still runs. The stacks of an attempt that has ended are those that were asked for last, by a user or
    by a rank that waited in vain for another one."""
    items: list[ProcessView]
    """The processes that answered, the driver first."""
    silent: list[int]
    """Ranks that did not answer in time; -1 is the driver. Native code keeps Python's lock there, the process is
    stopped, gone or not yet started, or it can't reach the service."""


@router.get("/stacks", responses=refused(409))
async def get_stacks(
    job_id: str,
    running: Running,
    who: Reader,
    wait_s: Annotated[
        float, Query(ge=0, le=5, description="How long to wait for the answers of all processes. Default: 3.")
    ] = 3,
) -> StacksView:
    """What every process of a job is doing now, as the Python stacks of its threads.

    A rank that waits in a collective answers as well. You see code, but no values. Of a job that has ended you get the
    stacks that were asked for last; where nobody did, and while a job has not started, the answer is 409.
    """
    job, attempt = await run_in_threadpool(_attempt_of, running, who, job_id)
    if attempt.ended_at is not None:
        return _view(attempt, await run_in_threadpool(_last_stacks, running, job, attempt), silent=[])
    request = await run_in_threadpool(running.stacks.request, attempt, who.actor)
    running.requests.changed(job.id)
    has_come = attempt.heartbeat_at is not None
    found = await _answers(running, attempt, request, wait_s if has_come else 0)
    processes = range(-1, attempt.workers)
    return _view(attempt, found, silent=[rank for rank in processes if rank not in {one.rank for one in found}])


def _attempt_of(running: _Running, who: Reader, job_id: str) -> tuple[Job, Attempt]:
    job, attempt = last_attempt(running.jobs, running.attempts, who, job_id)
    if attempt is None:
        raise _no_process(job)
    return job, attempt


def _last_stacks(running: _Running, job: Job, attempt: Attempt) -> list[StoredStacks]:
    if found := running.stacks.of_attempt(job.id, attempt.number):
        return found
    raise _no_process(job)


def _no_process(job: Job) -> ApiError:
    detail = f"Job {job.id} is {job.state} and has no process to look into. Ask while it runs."
    return ApiError(409, "state_conflict", detail, extra={"state": job.state, "allowed": allowed(job)})


async def _answers(running: _Running, attempt: Attempt, request: int, wait_s: float) -> list[StoredStacks]:
    """The answers to `request`: as soon as all processes have answered, otherwise those that came within `wait_s`."""

    async def find() -> list[StoredStacks]:
        found = await run_in_threadpool(running.stacks.of_attempt, attempt.job_id, attempt.number)
        return [one for one in found if one.request >= request]

    return await once_complete(
        find, lambda found: len(found) > attempt.workers, running.notifier, attempt.job_id, wait_s
    )


def _view(attempt: Attempt, found: Sequence[StoredStacks], silent: list[int]) -> StacksView:
    items = [
        ProcessView(
            rank=one.rank, at=one.at, threads=[ThreadView(**thread) for thread in one.threads], problem=one.problem
        )
        for one in found
    ]
    return StacksView(attempt=attempt.number, is_running=attempt.ended_at is None, items=items, silent=silent)
