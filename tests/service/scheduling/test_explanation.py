"""What `explain` says of a job that waits."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from syncnorm.service.jobs.admission import new_job
from syncnorm.service.scheduling.explanation import explain
from syncnorm.trainer.contract.protocol import StopRequest
from syncnorm.trainer.contract.spec_reader import read_spec
from tests.helpers.service.api import SPEC


@pytest.mark.parametrize(("stop", "end"), [("cancel", "cancelled"), ("pause", "paused")])
def test_queued_job_whose_stop_was_requested_says_so_also_while_ray_is_away(stop: StopRequest, end: str) -> None:
    job = replace(new_job(read_spec(SPEC), "ada", datetime(2026, 1, 1, tzinfo=UTC)), stop=stop, stop_by="ada")

    said = explain(job, None, None, 0)

    assert said.code == "stop_requested"
    assert said.message == f"A {stop} was requested by ada. The job does not start, and is {end} within seconds."
