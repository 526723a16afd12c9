"""Stores the jobs of many submits in one transaction. Each submit still waits for its own commit.

While one transaction is being written to disk, new submits gather for the next: group commit without added waiting. A
lone submit is stored at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from starlette.concurrency import run_in_threadpool

from syncnorm.service.backend_errors import DatabaseUnavailableError
from syncnorm.service.jobs.actors import SERVICE, Actor
from syncnorm.service.jobs.admission import new_job
from syncnorm.service.jobs.job import Job, JobState, NewEvent
from syncnorm.service.store import AddOutcome, NewJob, StoredResponse
from syncnorm.service.store.tables.jobs import JobTable
from syncnorm.trainer.contract.spec import JobSpec

_MOST = 200
"""Jobs in one transaction."""


@dataclass(frozen=True)
class SubmitRequest:
    """A valid request. digest: of its body, to tell a repeated request from another one with the same key."""

    spec: JobSpec
    owner: str
    key: str | None
    digest: str
    by: Actor = SERVICE


@dataclass(frozen=True)
class SubmitOutcome:
    """Stored: `answer` is about the new job. Otherwise the answer given before under the same key."""

    answer: StoredResponse
    is_new: bool


class SubmitBatcher:
    """Use it from one event loop only."""

    def __init__(
        self,
        jobs: JobTable,
        now: Callable[[], datetime],
        most_unfinished: int,
        describe: Callable[[Job], dict[str, Any]],
    ) -> None:
        """most_unfinished: limit for each owner. describe: makes the answer to a submit from its job."""
        self._jobs = jobs
        self._now = now
        self._most_unfinished = most_unfinished
        self._describe = describe
        self._waiting: list[tuple[SubmitRequest, asyncio.Future[SubmitOutcome | None]]] = []
        self._task: asyncio.Task[None] | None = None

    async def take(self, submit: SubmitRequest) -> SubmitOutcome | None:
        """Store a job; returns after the commit. None: its owner has too many unfinished jobs."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[SubmitOutcome | None] = loop.create_future()
        self._waiting.append((submit, done))
        if self._task is None:
            self._task = loop.create_task(self._run())
        return await done

    async def _run(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:_MOST], self._waiting[_MOST:]
                await self._settle(batch)
        finally:
            self._task = None

    async def _settle(self, batch: Sequence[tuple[SubmitRequest, asyncio.Future[SubmitOutcome | None]]]) -> None:
        try:
            results = await run_in_threadpool(self._keep, [submit for submit, _ in batch])
        except Exception as error:
            is_fault_of_one = not isinstance(error, DatabaseUnavailableError)
            if len(batch) > 1 and is_fault_of_one:  # then each one by itself
                for one in batch:
                    await self._settle([one])
                return
            results = []
            for _, done in batch:
                if not done.done():
                    done.set_exception(error)
        for (_, done), result in zip(batch, results, strict=False):
            if not done.done():  # its client may be gone
                done.set_result(result)

    def _keep(self, submits: Sequence[SubmitRequest]) -> list[SubmitOutcome | None]:
        now = self._now()
        new, answers = [], []
        for one in submits:
            job = new_job(one.spec, one.owner, now)
            answer = StoredResponse(one.digest, self._describe(job))
            event = NewEvent(JobState.QUEUED, "Submitted.", {"owner": one.owner}, one.by)
            new.append(NewJob(job, event, one.key, answer))
            answers.append(answer)
        results = self._jobs.add_all(new, self._most_unfinished)
        return [_taken(answer, result) for answer, result in zip(answers, results, strict=True)]


def _taken(answer: StoredResponse, result: StoredResponse | AddOutcome) -> SubmitOutcome | None:
    if isinstance(result, StoredResponse):
        return SubmitOutcome(result, is_new=False)
    return SubmitOutcome(answer, is_new=True) if result is AddOutcome.STORED else None
