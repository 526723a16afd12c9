"""The rule of death, and what follows an ending. Pure."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from service.decide import EndOnRay, Launch, Move, RayStatus, Rules, Seen, decide
from service.jobs import ARROWS, Attempt, Job, JobState, new_job_id
from service.submit import new_job
from trainer.attempt import Result
from trainer.failure import ADVICE, FailureReason
from trainer.spec_reader import read_spec

NOW = datetime(2026, 1, 1, tzinfo=UTC)
RULES = Rules()
SPEC = {"name": "job", "model": {"name": "resnet"}, "data": {"name": "digits", "batch_size": 32}}


def job(state: JobState = JobState.RUNNING, **changes: Any) -> Job:
    fresh = new_job(read_spec(SPEC), "ann", NOW - timedelta(seconds=100))
    return replace(fresh, state=state, attempt=1, started_at=NOW - timedelta(seconds=90), **changes)


def attempt(**changes: Any) -> Attempt:
    made = Attempt(
        id="job-1",
        job_id=new_job_id(),
        number=1,
        fence="f",
        created_at=NOW - timedelta(seconds=95),
        lease_expires_at=NOW + timedelta(seconds=10),
        session="session-1",
        submitted_at=NOW - timedelta(seconds=94),
        heartbeat_at=NOW - timedelta(seconds=5),
        phase="training",
        step=7,
    )
    return replace(made, **changes)


def seen(ray: RayStatus = RayStatus.RUNNING, session: str | None = "session-1", **more: Any) -> Seen:
    return Seen(NOW, ray=ray, session=session, **more)


LEASE_OUT = {"lease_expires_at": NOW - timedelta(seconds=1)}


@pytest.mark.parametrize("lease_out", [False, True])
@pytest.mark.parametrize("node_gone", [False, True])
@pytest.mark.parametrize("ray", list(RayStatus))
def test_attempt_is_dead_only_if_its_lease_and_ray_agree(lease_out: bool, node_gone: bool, ray: RayStatus) -> None:
    """However Ray says it: behind a cut it calls a living attempt failed and its host gone, both within a second."""
    session = None if ray is RayStatus.UNREACHABLE else "session-1"
    is_gone_for_ray = node_gone or ray in (RayStatus.ENDED, RayStatus.UNKNOWN)

    decision = decide(
        job(), attempt(**(LEASE_OUT if lease_out else {})), seen(ray, session, node_gone=node_gone), RULES
    )

    assert isinstance(decision, Move) == (lease_out and is_gone_for_ray)


def test_ended_on_ray_with_a_live_heartbeat_is_not_dead() -> None:
    # Ray calls a driver FAILED whose host it lost sight of, while it trains on (ray #65025).
    assert decide(job(), attempt(), seen(RayStatus.ENDED), RULES) is None


def test_silent_attempt_that_ray_calls_running_is_not_dead() -> None:
    # A partition between worker and service; or a ghost, which Ray drops once its agent is asked (ray #65037).
    assert decide(job(), attempt(**LEASE_OUT), seen(RayStatus.RUNNING), RULES) is None


def test_attempt_of_an_earlier_session_outlives_its_lease_by_the_orphan_life() -> None:
    over = attempt(lease_expires_at=NOW - timedelta(seconds=RULES.orphan_life_s or 0))

    early = decide(job(), over, seen(RayStatus.UNKNOWN, "session-2"), RULES)
    late = decide(
        job(),
        replace(over, lease_expires_at=over.lease_expires_at - timedelta(seconds=1)),
        seen(session="session-2"),
        RULES,
    )

    assert early is None
    assert isinstance(late, Move)
    assert (late.to, late.changes["failures"]) == (JobState.QUEUED, 0)


def test_attempt_is_never_launched_into_another_session() -> None:
    fresh = attempt(submitted_at=None, heartbeat_at=None, phase=None)

    same = decide(job(JobState.STARTING), fresh, seen(RayStatus.UNKNOWN), RULES)
    other = decide(job(JobState.STARTING), fresh, seen(RayStatus.UNKNOWN, "session-2"), RULES)
    unreachable = decide(job(JobState.STARTING), fresh, seen(RayStatus.UNREACHABLE, None), RULES)

    assert (same, other, unreachable) == (Launch(), None, None)


def test_success_comes_from_a_result_and_nothing_else() -> None:
    silent = decide(job(), attempt(**LEASE_OUT), seen(RayStatus.ENDED), RULES)
    said = decide(job(), attempt(), seen(result=Result(fence="f", outcome="succeeded")), RULES)

    assert isinstance(silent, Move)
    assert isinstance(said, Move)
    assert (silent.to, said.to) == (JobState.QUEUED, JobState.SUCCEEDED)


@pytest.mark.parametrize("reason", list(FailureReason))
def test_failure_is_retried_if_that_can_help_and_the_budget_allows(reason: FailureReason) -> None:
    result = Result(fence="f", outcome="failed", reason=reason, message="It broke.")

    first = decide(job(), attempt(), seen(result=result), RULES)
    last = decide(job(failures=3), attempt(), seen(result=result), RULES)

    assert isinstance(first, Move)
    assert isinstance(last, Move)
    assert first.to is (JobState.QUEUED if ADVICE[reason].retryable else JobState.FAILED)
    assert (last.to, last.changes["reason"]) == (JobState.FAILED, reason)


def test_wait_before_another_attempt_doubles_until_there_is_progress() -> None:
    result = Result(fence="f", outcome="failed", reason=FailureReason.WORKER_LOST)

    waits = []
    for stalled, resume_step in ((0, 7), (1, 7), (5, 7), (9, 7), (5, 3)):
        one = job(stalled=stalled, max_failures=99)
        move = decide(one, attempt(resume_step=resume_step), seen(result=result), RULES)
        assert isinstance(move, Move)
        waits.append((move.changes["not_before"] - NOW).total_seconds())

    assert waits == [10, 20, 320, 600, 10]


def test_stop_becomes_kill_after_the_grace() -> None:
    asked = {"stop": "cancel", "grace_s": 30.0}

    early = decide(job(JobState.STOPPING, stop_at=NOW - timedelta(seconds=29), **asked), attempt(), seen(), RULES)
    late = decide(job(JobState.STOPPING, stop_at=NOW - timedelta(seconds=30), **asked), attempt(), seen(), RULES)

    assert early is None
    assert isinstance(late, EndOnRay)


def test_workers_that_never_train_are_given_up() -> None:
    waiting = attempt(phase="starting_workers", created_at=NOW - timedelta(seconds=601))

    decision = decide(job(JobState.STARTING), waiting, seen(), RULES)

    assert isinstance(decision, EndOnRay)
    assert decision.reason is FailureReason.STARTUP_TIMEOUT


def test_deadline_counts_from_the_first_start() -> None:
    over = decide(job(deadline_s=89.0), attempt(), seen(), RULES)
    not_over = decide(job(deadline_s=91.0), attempt(), seen(), RULES)

    assert isinstance(over, Move)
    assert (over.to, over.changes["stop"]) == (JobState.STOPPING, "deadline")
    assert not_over is None


@pytest.mark.parametrize("state", [state for state in JobState if state in ("succeeded", "failed", "cancelled")])
def test_finished_job_is_left_alone(state: JobState) -> None:
    late = Result(fence="f", outcome="succeeded")

    assert decide(job(state), attempt(), seen(result=late), RULES) is None


def test_readme_shows_every_arrow_with_its_sentence() -> None:
    text = (Path(__file__).resolve().parents[2] / "service" / "README.md").read_text()

    shown = {line for line in text.splitlines() if line.startswith("| `")}
    drawn = {line.strip() for line in text.splitlines() if " --> " in line}

    assert {f"| `{source}` | `{target}` | {sentence} |" for (source, target), sentence in ARROWS.items()} <= shown
    assert drawn == {f"{source} --> {target}" for source, target in ARROWS} | {"[*] --> queued"}
