"""What the endpoints depend on: the components that a resource needs, and who is asking."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Annotated, TypeVar

from fastapi import Depends, Request
from starlette.concurrency import run_in_threadpool

from syncnorm.service.api.auth import Principal, UnauthorizedError, require
from syncnorm.service.api.components import Components
from syncnorm.service.api.http.errors import not_found
from syncnorm.service.jobs.job import Job
from syncnorm.service.jobs.study import Study
from syncnorm.service.store.tables.jobs import JobTable
from syncnorm.service.store.tables.studies import StudyTable

T = TypeVar("T")
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""The form of an id. Anything else can't exist, and a database may even refuse to look it up."""


def provide(pick: Callable[[Components], T]) -> Callable[[Request], Awaitable[T]]:
    """A dependency on what `pick` takes of the server's components: one for each resource, for each costs 0.05 ms."""

    async def provided(request: Request) -> T:
        return pick(request.app.state.context)

    return provided


async def authorize(request: Request, scope: str) -> Principal:
    """The holder of the token in the Authorization header.

    Raises: ApiError 401 without a valid token, 429 above the rate limit, 403 without the scope.
    """
    components: Components = request.app.state.context
    authorization = request.headers.get("authorization", "")
    principal = components.authenticator.cached(authorization)
    if principal is None:
        try:
            principal = await run_in_threadpool(components.authenticator.authenticate, authorization)
        except UnauthorizedError as error:
            request.state.denied = error
            raise
    return admit(request, principal, scope)


def admit(request: Request, principal: Principal, scope: str) -> Principal:
    """The caller of this request from now on. Raises: ApiError 429 above the rate limit, 403 without the scope."""
    components: Components = request.app.state.context
    principal = replace(principal, request_id=request.state.request_id)
    request.state.principal = principal
    components.rate.take(principal.name)
    return require(principal, scope)


# One function each that depends on the request only: every further dependency costs FastAPI 0.05 ms a request.
async def _reader(request: Request) -> Principal:
    return await authorize(request, "read")


async def _submitter(request: Request) -> Principal:
    return await authorize(request, "submit")


async def _admin(request: Request) -> Principal:
    return await authorize(request, "admin")


SCOPE_OF = {_reader: "read", _submitter: "submit", _admin: "admin"}
"""The scope that each dependency requires."""
Reader = Annotated[Principal, Depends(_reader)]
Submitter = Annotated[Principal, Depends(_submitter)]
Admin = Annotated[Principal, Depends(_admin)]


def may_be_id(text: str) -> bool:
    """Whether it can be an id at all; only then is a database asked for it, which may not take any text."""
    return _ID.fullmatch(text) is not None


def visible_job(jobs: JobTable, who: Principal, job_id: str) -> Job:
    """Raises: ApiError 404, the same for a job that does not exist and for one of another owner."""
    job = jobs.get(job_id) if may_be_id(job_id) else None
    if job is None or not who.may_see(job):
        raise not_found("job", job_id)
    return job


def visible_study(studies: StudyTable, who: Principal, study_id: str) -> Study:
    """Raises: ApiError 404, the same for a study that does not exist and for one of another owner."""
    study = studies.get(study_id) if may_be_id(study_id) else None
    if study is None or not who.may_see(study):
        raise not_found("study", study_id)
    return study
