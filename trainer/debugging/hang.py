"""What all ranks were doing when one of them waited in vain for another."""

from __future__ import annotations

import time

from syncnorm.trainer.contract.failure import FailureReason
from syncnorm.trainer.failure_classifier import Failure
from syncnorm.trainer.reporting.reporter import Reporter

ANSWERS_S = 3.0
"""How long the others get to answer before this rank fails, and Ray ends them all."""


def keep_stacks(failure: Failure, reporter: Reporter, job_id: str) -> None:
    """For a collective that timed out, have the stacks of all ranks kept with the attempt."""
    if failure.reason is not FailureReason.COLLECTIVE_TIMEOUT:
        return
    reporter.request_stacks()
    reporter.log("ERROR", f"see what every rank was doing at that time: syncnorm stacks {job_id}")
    time.sleep(ANSWERS_S)
