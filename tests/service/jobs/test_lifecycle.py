"""The rule of death, and what follows an ending. Pure."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from syncnorm.service.jobs.admission import new_job
from syncnorm.service.jobs.attempt_ending import Observation, RayStatus, Rules
from syncnorm.service.jobs.job import ARROWS, Attempt, Job, JobState, new_job_id
from syncnorm.service.jobs.lifecycle import Move, StopOnRay, SubmitToRay, decide, refused
from syncnorm.trainer.contract.failure import ADVICE, FailureReason, advised
from syncnorm.trainer.contract.protocol import Result
from syncnorm.trainer.contract.spec_reader import read_spec
from tests.helpers.paths import ROOT

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


def observation(ray: RayStatus = RayStatus.RUNNING, session: str | None = "session-1", **more: Any) -> Observation:
    return Observation(NOW, ray=ray, session=session, **more)


LEASE_OUT = {"lease_expires_at": NOW - timedelta(seconds=1)}


@pytest.mark.parametrize("lease_out", [False, True])
@pytest.mark.parametrize("node_gone", [False, True])
@pytest.mark.parametrize("ray", list(RayStatus))
def test_attempt_is_dead_only_if_its_lease_and_ray_agree(lease_out: bool, node_gone: bool, ray: RayStatus) -> None:
    """However Ray says it: behind a cut it calls a living attempt failed and its host gone, both within a second."""
    session = None if ray is RayStatus.UNREACHABLE else "session-1"
    is_gone_for_ray = node_gone or ray in (RayStatus.ENDED, RayStatus.UNKNOWN)

    decision = decide(
        job(), attempt(**(LEASE_OUT if lease_out else {})), observation(ray, session, node_gone=node_gone), RULES
    )

    assert isinstance(decision, Move) == (lease_out and is_gone_for_ray)


def test_ended_on_ray_with_a_live_heartbeat_is_not_dead() -> None:
    # Ray calls a driver FAILED whose host it lost sight of, while it trains on (ray #65025).
    assert decide(job(), attempt(), observation(RayStatus.ENDED), RULES) is None


@pytest.mark.parametrize(
    "said", ["", "failed with exit code 1, last logs:\n  ModuleNotFoundError: No module named 'ray'\n"]
)
@pytest.mark.parametrize("was_heard", [False, True])
def test_driver_that_never_reported_is_quoted(said: str, was_heard: bool) -> None:
    gone = attempt(**LEASE_OUT, **({} if was_heard else {"heartbeat_at": None, "phase": None}))

    decision = decide(job(), gone, observation(RayStatus.ENDED, ray_message=said), RULES)

    assert isinstance(decision, Move)
    quoted = "before it reported anything. Its last line: ModuleNotFoundError: No module named 'ray'"
    assert (quoted in decision.changes["message"]) == (said != "" and not was_heard)


def test_silent_attempt_that_ray_calls_running_is_not_dead() -> None:
    # A partition between worker and service; or a ghost, which Ray drops once its agent is asked (ray #65037).
    assert decide(job(), attempt(**LEASE_OUT), observation(RayStatus.RUNNING), RULES) is None


def test_attempt_of_an_earlier_session_outlives_its_lease_by_the_orphan_life() -> None:
    over = attempt(lease_expires_at=NOW - timedelta(seconds=RULES.orphan_life_s or 0))

    early = decide(job(), over, observation(RayStatus.UNKNOWN, "session-2"), RULES)
    late = decide(
        job(),
        replace(over, lease_expires_at=over.lease_expires_at - timedelta(seconds=1)),
        observation(session="session-2"),
        RULES,
    )

    assert early is None
    assert isinstance(late, Move)
    assert (late.to, late.changes["failures"]) == (JobState.QUEUED, 0)


def test_attempt_is_never_launched_into_another_session() -> None:
    fresh = attempt(submitted_at=None, heartbeat_at=None, phase=None)

    same = decide(job(JobState.STARTING), fresh, observation(RayStatus.UNKNOWN), RULES)
    other = decide(job(JobState.STARTING), fresh, observation(RayStatus.UNKNOWN, "session-2"), RULES)
    unreachable = decide(job(JobState.STARTING), fresh, observation(RayStatus.UNREACHABLE, None), RULES)

    assert (same, other, unreachable) == (SubmitToRay(), None, None)


def test_success_comes_from_a_result_and_nothing_else() -> None:
    silent = decide(job(), attempt(**LEASE_OUT), observation(RayStatus.ENDED), RULES)
    said = decide(job(), attempt(), observation(result=Result(fence="f", outcome="succeeded")), RULES)

    assert isinstance(silent, Move)
    assert isinstance(said, Move)
    assert (silent.to, said.to) == (JobState.QUEUED, JobState.SUCCEEDED)


@pytest.mark.parametrize("reason", list(FailureReason))
def test_failure_is_retried_if_that_can_help_and_the_budget_allows(reason: FailureReason) -> None:
    result = Result(fence="f", outcome="failed", reason=reason, message="It broke.")

    first = decide(job(), attempt(), observation(result=result), RULES)
    last = decide(job(failures=3), attempt(), observation(result=result), RULES)

    assert isinstance(first, Move)
    assert isinstance(last, Move)
    assert first.to is (JobState.QUEUED if ADVICE[reason].retryable else JobState.FAILED)
    assert (last.to, last.changes["reason"]) == (JobState.FAILED, reason)


def test_wait_before_another_attempt_doubles_until_there_is_progress() -> None:
    result = Result(fence="f", outcome="failed", reason=FailureReason.WORKER_LOST)

    waits = []
    for stalled, resume_step in ((0, 7), (1, 7), (5, 7), (9, 7), (5, 3)):
        one = job(stalled=stalled, max_failures=99)
        move = decide(one, attempt(resume_step=resume_step), observation(result=result), RULES)
        assert isinstance(move, Move)
        waits.append((move.changes["not_before"] - NOW).total_seconds())

    assert waits == [10, 20, 320, 600, 10]


def test_stop_becomes_kill_after_the_grace() -> None:
    asked = {"stop": "cancel", "grace_s": 30.0}

    early = decide(
        job(JobState.STOPPING, stop_at=NOW - timedelta(seconds=29), **asked), attempt(), observation(), RULES
    )
    late = decide(job(JobState.STOPPING, stop_at=NOW - timedelta(seconds=30), **asked), attempt(), observation(), RULES)

    assert early is None
    assert isinstance(late, StopOnRay)


def test_workers_that_never_train_are_given_up() -> None:
    waiting = attempt(phase="starting_workers", created_at=NOW - timedelta(seconds=601))

    decision = decide(job(JobState.STARTING), waiting, observation(), RULES)

    assert isinstance(decision, StopOnRay)
    assert decision.reason is FailureReason.STARTUP_TIMEOUT


def test_deadline_counts_from_the_first_start() -> None:
    over = decide(job(deadline_s=89.0), attempt(), observation(), RULES)
    not_over = decide(job(deadline_s=91.0), attempt(), observation(), RULES)

    assert isinstance(over, Move)
    assert (over.to, over.changes["stop"]) == (JobState.STOPPING, "deadline")
    assert not_over is None


FRESH: dict[str, Any] = {"submitted_at": None, "heartbeat_at": None, "phase": None, "step": 0}
LATE = {"created_at": NOW - timedelta(seconds=601)}
SENT = {"stop_sent_at": NOW, "reason": FailureReason.STARTUP_TIMEOUT, "message": "Not handed over."}


def test_attempt_that_can_not_be_launched_is_given_up_as_one_that_does_not_train() -> None:
    early = decide(job(JobState.STARTING), attempt(**FRESH), observation(RayStatus.UNKNOWN), RULES)
    late = decide(job(JobState.STARTING), attempt(**FRESH | LATE), observation(RayStatus.UNKNOWN), RULES)
    nobody_can = decide(
        job(JobState.STARTING), attempt(**FRESH | LATE), observation(RayStatus.UNREACHABLE, None), RULES
    )

    assert (early, nobody_can) == (SubmitToRay(), None)
    assert isinstance(late, StopOnRay)
    assert (late.reason, "could not be launched through MLflow and Ray" in late.message) == (
        FailureReason.STARTUP_TIMEOUT,
        True,
    )


@pytest.mark.parametrize(("others_launch", "failures"), [(True, 1), (False, 0)])
def test_launch_counts_as_failed_only_if_others_were_launched_meanwhile(others_launch: bool, failures: int) -> None:
    given_up = attempt(**FRESH | LATE | SENT)

    move = decide(job(JobState.STARTING), given_up, observation(RayStatus.UNKNOWN, others_launch=others_launch), RULES)

    assert isinstance(move, Move)
    assert (move.to, move.changes["failures"]) == (JobState.QUEUED, failures)


@pytest.mark.parametrize("overdue_s", [599, 601])
def test_silent_attempt_of_which_ray_says_nothing_sensible_is_dead_after_ten_minutes(overdue_s: int) -> None:
    silent = attempt(lease_expires_at=NOW - timedelta(seconds=overdue_s))

    assert isinstance(decide(job(), silent, observation(RayStatus.UNREACHABLE), RULES), Move) == (overdue_s > 600)


@pytest.mark.parametrize(
    ("stop", "reason"), [("preempt", FailureReason.PREEMPTED), ("cancel", FailureReason.CANCELLED_BY_USER)]
)
def test_attempt_that_is_stopped_before_it_began_says_so(stop: Any, reason: FailureReason) -> None:
    stopping = job(JobState.STOPPING, stop=stop, stop_at=NOW - timedelta(seconds=15), grace_s=60.0)

    end = decide(stopping, attempt(**FRESH | {"submitted_at": NOW}), observation(), RULES)
    assert isinstance(end, StopOnRay)
    ended = attempt(**FRESH | {"submitted_at": NOW, "stop_sent_at": NOW, "reason": end.reason, "message": end.message})
    move = decide(stopping, ended, observation(RayStatus.ENDED), RULES)

    assert isinstance(move, Move)
    closing = {name: move.attempt_changes[name] for name in ("outcome", "reason", "message")}
    assert closing == {"outcome": "stopped", "reason": reason, "message": "Stopped before its workers were up."}


@pytest.mark.parametrize(
    ("sent_s", "ray", "again"),
    [
        (29, RayStatus.RUNNING, False),
        (31, RayStatus.RUNNING, True),
        (31, RayStatus.UNREACHABLE, False),
    ],
)
def test_stop_that_ray_did_not_carry_out_is_sent_again(sent_s: float, ray: RayStatus, again: bool) -> None:
    stopping = job(JobState.STOPPING, stop="cancel", stop_at=NOW - timedelta(seconds=90), grace_s=10.0)
    asked = attempt(stop_sent_at=NOW - timedelta(seconds=sent_s))

    assert isinstance(decide(stopping, asked, observation(ray), RULES), StopOnRay) is again


def test_text_of_a_deadline_is_said_once_and_names_the_way_on() -> None:
    over = decide(job(JobState.QUEUED, deadline_s=8.0), None, observation(), RULES)

    assert isinstance(over, Move)
    said = advised(over.changes["message"], FailureReason.DEADLINE)
    assert said.count("has passed") == 1
    assert said.endswith("raise limits.deadline_s of the job, then retry it.")


@pytest.mark.parametrize("numbers", [{"deadline_s": 1e12}, {"deadline_s": float("inf")}, {"grace_s": 1e300}], ids=str)
@pytest.mark.parametrize("state", [JobState.RUNNING, JobState.STOPPING, JobState.QUEUED])
def test_times_beyond_the_calendar_never_come(state: JobState, numbers: dict[str, float]) -> None:
    stop = {"stop": "preempt", "stop_at": NOW} if state is JobState.STOPPING else {}

    assert decide(job(state, **numbers, **stop), attempt(), observation(), RULES) is None


@pytest.mark.parametrize("stalled", [1_025, 10**9])
def test_wait_before_another_attempt_is_bounded_for_any_number_of_failures(stalled: int) -> None:
    result = Result(fence="f", outcome="failed", reason=FailureReason.WORKER_LOST)

    move = decide(job(stalled=stalled, max_failures=99), attempt(resume_step=7), observation(result=result), RULES)

    assert isinstance(move, Move)
    assert move.changes["not_before"] == NOW + timedelta(seconds=600)


def test_refused_launch_fails_its_job_or_ends_one_that_is_cancelled() -> None:
    failed, cancelled = (
        refused(job(JobState.STARTING, stop=stop), "MLflow says no.", NOW) for stop in (None, "cancel")
    )

    assert (failed.to, failed.changes["reason"], failed.message) == (
        JobState.FAILED,
        FailureReason.INTERNAL,
        "MLflow says no.",
    )
    assert (cancelled.to, cancelled.attempt_changes["outcome"]) == (JobState.CANCELLED, "failed")


@pytest.mark.parametrize("state", [state for state in JobState if state in ("succeeded", "failed", "cancelled")])
def test_finished_job_is_left_alone(state: JobState) -> None:
    late = Result(fence="f", outcome="succeeded")

    assert decide(job(state), attempt(), observation(result=late), RULES) is None


def test_readme_shows_every_arrow_with_its_sentence() -> None:
    text = (ROOT / "docs" / "explanation" / "life-of-a-job.md").read_text()

    shown = {line for line in text.splitlines() if line.startswith("| `")}
    picture = (ROOT / "docs" / "explanation" / "states-of-a-job.svg").read_text()
    drawn = set(re.findall(r"<title>(\w+) to (\w+): ", picture))

    assert {f"| `{source}` | `{target}` | {sentence} |" for (source, target), sentence in ARROWS.items()} <= shown
    assert drawn == {(source.value, target.value) for source, target in ARROWS}


def test_driver_of_a_version_that_the_worker_lacks_tells_so() -> None:
    silent = attempt(**LEASE_OUT, heartbeat_at=None, phase=None)
    said = "ModuleNotFoundError: No module named 'syncnorm')"

    decision = decide(job(), silent, observation(RayStatus.ENDED, ray_message=said), RULES)

    assert isinstance(decision, Move)
    assert "have another version of syncnorm" in decision.changes["message"]
