"""/v1/jobs/{id}/profile: where the time of a running job's steps goes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from starlette.concurrency import run_in_threadpool

from syncnorm.service.api.change_notifier import ChangeNotifier
from syncnorm.service.api.components import Components
from syncnorm.service.api.dependencies import Reader, Submitter, provide
from syncnorm.service.api.http.errors import ApiError, FieldProblem, refused
from syncnorm.service.api.http.route import Route
from syncnorm.service.api.resources.running.process_answers import last_attempt, once_complete
from syncnorm.service.api.views.view import View, read
from syncnorm.service.jobs.actions import allowed
from syncnorm.service.jobs.job import Attempt, Job
from syncnorm.service.store import StoredProfile
from syncnorm.service.store.tables.attempts import AttemptTable
from syncnorm.service.store.tables.jobs import JobTable
from syncnorm.service.store.tables.profiles import Profiled, ProfileTable
from syncnorm.trainer.contract.profile import ProfileAnswer, ProfileOptions, ProfileSummary

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["jobs"], route_class=Route)


@dataclass(frozen=True)
class _Profiles:
    jobs: JobTable
    attempts: AttemptTable
    table: ProfileTable
    notifier: ChangeNotifier
    requests: ChangeNotifier


def _profiles(parts: Components) -> _Profiles:
    store = parts.store
    return _Profiles(store.jobs, store.attempts, store.profiles, parts.notifier, parts.requests)


Profiles = Annotated[_Profiles, Depends(provide(_profiles))]


class RankProfileView(View):
    """What one rank measured."""

    rank: int
    """Its rank."""
    at: datetime
    """When its answer came."""
    summary: ProfileSummary | None
    """Where the time of a step goes; null where there is a problem."""
    trace: str | None
    """Path of its trace among the files of the job and the artifacts of its run; null: there is none."""
    trace_bytes: int
    """Size of the trace, which is compressed with gzip."""
    notes: list[str]
    """What you should know of it, such as that it was ended early."""
    problem: str | None
    """Why there is no profile of this rank; null: there is one."""


class ProfileView(View):
    """A profile of an attempt."""

    attempt: int
    """Number of the attempt."""
    seconds: float
    """How long was asked for."""
    steps: int | None
    """After how many steps it was to end; null: after any."""
    items: list[RankProfileView]
    """The ranks that have answered."""
    pending: list[int]
    """Ranks that have not answered yet. Ask again until there are none."""
    silent: list[int]
    """Ranks that will not answer any more: they were stopped, or can't reach the service."""


@router.post("/profile", status_code=202, responses=refused(409))
async def ask_for_profile(job_id: str, options: ProfileOptions, profiles: Profiles, who: Submitter) -> ProfileView:
    """Profile some steps of a running job. Poll `GET /v1/jobs/{job_id}/profile` for the answers.

    Each rank records with torch.profiler, from the start of a step to the end of another. Its trace becomes a file of
    the job and an artifact of the run. A job that does not train, or whose last profile is not finished, is a 409.
    """
    job, attempt = await run_in_threadpool(_attempt_of, profiles, who, job_id)
    if attempt is None or attempt.ended_at is not None or attempt.phase != "training":
        detail = f"Job {job.id} is {job.state} and has no steps to profile. Ask while it trains."
        raise ApiError(409, "state_conflict", detail, extra={"state": job.state, "allowed": allowed(job)})
    if beyond := [rank for rank in options.ranks or () if rank >= attempt.workers]:
        text = f"attempt {attempt.number} has the ranks 0 to {attempt.workers - 1}; got {beyond[0]}"
        raise ApiError(422, "invalid_value", f"{text}.", errors=[FieldProblem(pointer="/ranks", detail=text)])
    if await run_in_threadpool(profiles.table.request, attempt, options, who.actor) is None:
        detail = f"A profile of job {job.id} is not finished. Wait until it has no pending ranks."
        raise ApiError(409, "profile_running", detail, headers={"Retry-After": "5"})
    profiles.requests.changed(job.id)
    return await _found(profiles, attempt)


@router.get("/profile")
async def get_profile(
    job_id: str,
    profiles: Profiles,
    who: Reader,
    wait_s: Annotated[
        float, Query(ge=0, le=5, description="How long to wait while ranks are pending. Default: 0.")
    ] = 0,
) -> ProfileView:
    """The profile of the job's last attempt that was asked for last. 404 if nobody asked."""
    return await once_complete(
        lambda: _newest(profiles, who, job_id), lambda view: not view.pending, profiles.notifier, job_id, wait_s
    )


async def _newest(profiles: _Profiles, who: Reader, job_id: str) -> ProfileView:
    job, attempt = await run_in_threadpool(_attempt_of, profiles, who, job_id)
    if attempt is None:
        raise _none(job)
    return await _found(profiles, attempt)


def _attempt_of(profiles: _Profiles, who: Reader, job_id: str) -> tuple[Job, Attempt | None]:
    return last_attempt(profiles.jobs, profiles.attempts, who, job_id)


async def _found(profiles: _Profiles, attempt: Attempt) -> ProfileView:
    found = await run_in_threadpool(profiles.table.newest, attempt)
    if found is None:
        raise _none(attempt)
    return _view(attempt, found)


def _none(of: Job | Attempt) -> ApiError:
    job_id = of.id if isinstance(of, Job) else of.job_id
    detail = f"Nobody has asked for a profile of the last attempt of job {job_id}. POST to the same address does."
    return ApiError(404, "not_found", detail)


def _view(attempt: Attempt, found: Profiled) -> ProfileView:
    missing = found.missing
    return ProfileView(
        attempt=attempt.number,
        seconds=found.request.seconds,
        steps=found.request.steps,
        items=[_of_rank(one) for one in found.answers],
        pending=[] if found.is_late else missing,
        silent=missing if found.is_late else [],
    )


def _of_rank(one: StoredProfile) -> RankProfileView:
    answer = read(ProfileAnswer, one.answer) or ProfileAnswer(problem=one.problem or "The answer can't be read.")
    return RankProfileView(
        rank=one.rank,
        at=one.at,
        summary=answer.summary,
        trace=answer.trace,
        trace_bytes=answer.trace_bytes,
        notes=answer.notes,
        problem=one.problem or answer.problem,
    )
