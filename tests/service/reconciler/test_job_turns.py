"""Whose turn it is in a tick, where there is not time for all jobs."""

from __future__ import annotations

from datetime import UTC, datetime

from syncnorm.service.jobs.admission import new_job
from syncnorm.service.reconciler.job_step import in_turn
from syncnorm.trainer.contract.spec_reader import read_spec

SPEC = {"name": "job", "model": {"name": "resnet"}, "data": {"name": "digits", "batch_size": 32}}
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_job_of_another_owner_comes_before_many_of_one_whose_jobs_are_slow() -> None:
    many = [new_job(read_spec(SPEC), "ann", NOW) for _ in range(40)]
    other = new_job(read_spec(SPEC), "bob", NOW)

    assert in_turn([*many, other], {many[0].id: 1.0})[0] == other


def test_jobs_that_were_slow_come_last_and_the_slowest_ago_first() -> None:
    one, two, three = (new_job(read_spec(SPEC), "ann", NOW) for _ in range(3))

    assert in_turn([one, two, three], {one.id: 2.0, two.id: 1.0}) == [three, two, one]
