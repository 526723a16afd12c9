"""The mirror of the queue: who is in front, and how many go before."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from syncnorm.service.jobs.admission import new_job
from syncnorm.service.jobs.job import Job, JobState
from syncnorm.service.scheduling.queue import JobQueue
from syncnorm.service.scheduling.schedule import Policy
from syncnorm.trainer.contract.spec_reader import read_spec

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SPEC = read_spec({"name": "job", "model": {"name": "resnet"}, "data": {"name": "digits", "batch_size": 32}})
TEMPLATE = new_job(SPEC, "ann", NOW)


def job(name: str, owner: str, after_s: float, priority: int = 0) -> Job:
    return replace(
        TEMPLATE, id=name, owner=owner, priority=priority, created_at=NOW, queued_at=NOW + timedelta(seconds=after_s)
    )


class Source:
    def __init__(self, *jobs: Job) -> None:
        self.all = {one.id: one for one in jobs}

    def versions(self, _state: JobState) -> Mapping[str, int]:
        return {one.id: one.version for one in self.all.values()}

    def jobs(self, ids: Collection[str], _faults: object = None) -> list[Job]:
        return [self.all[name] for name in ids]


def test_front_is_in_the_order_of_points_over_all_owners() -> None:
    queue = JobQueue(Policy(ageing_s=300))
    queue.refresh(Source(job("a", "ann", 0), job("b", "bob", 10), job("c", "ann", 20), job("urgent", "bob", 400, 2)))

    assert [(one.id, ahead) for one, ahead in queue.front(3)] == [("urgent", 0), ("a", 1), ("b", 2)]


def test_front_of_an_owner_counts_all_jobs_ahead() -> None:
    queue = JobQueue(Policy())
    queue.refresh(Source(*(job(f"a{index:02}", "ann", index) for index in range(20)), job("b", "bob", 12.5)))

    assert [(one.id, ahead) for one, ahead in queue.front(5, "bob")] == [("b", 13)]
    assert [ahead for _, ahead in queue.front(15, "ann")] == [*range(13), 14, 15]
    assert queue.front(5, "nobody") == []


def test_job_that_does_not_wait_has_as_many_ahead_as_if_it_did() -> None:
    queue = JobQueue(Policy())
    queue.refresh(Source(job("a", "ann", 0), job("b", "bob", 10)))

    assert [queue.ahead(job("new", "eve", after_s)) for after_s in (-1, 5, 11)] == [0, 1, 2]
