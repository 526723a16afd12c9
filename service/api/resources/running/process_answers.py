"""Answers of a running attempt's processes: what was asked of them, and waiting until they have come."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from syncnorm.service.api.change_notifier import ChangeNotifier
from syncnorm.service.api.dependencies import Reader, visible_job
from syncnorm.service.jobs.job import Attempt, Job
from syncnorm.service.store.tables.attempts import AttemptTable
from syncnorm.service.store.tables.jobs import JobTable
from syncnorm.trainer.contract.protocol import attempt_id

T = TypeVar("T")
_REST_S = 0.1
"""Between two looks, at the least."""
_POLL_S = 0.5
"""At the most: the answers may come to another process of the service."""


def last_attempt(jobs: JobTable, attempts: AttemptTable, who: Reader, job_id: str) -> tuple[Job, Attempt | None]:
    """The job, and its last attempt if it has begun one."""
    job = visible_job(jobs, who, job_id)
    return job, attempts.get(attempt_id(job.id, job.attempt)) if job.attempt else None


async def once_complete(
    find: Callable[[], Awaitable[T]],
    is_complete: Callable[[T], bool],
    notifier: ChangeNotifier,
    job_id: str,
    wait_s: float,
) -> T:
    """What `find` gives once it is complete, or after `wait_s`. It is asked again whenever something has changed."""
    clock = asyncio.get_running_loop().time
    until = clock() + wait_s
    with notifier.following(job_id) as changed:
        while True:
            changed.clear()
            found = await find()
            left = until - clock()
            if is_complete(found) or left <= 0 or notifier.is_closed:
                return found
            with suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), min(left, _POLL_S))
            await asyncio.sleep(min(_REST_S, max(0, until - clock())))
