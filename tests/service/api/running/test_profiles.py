"""POST and GET /v1/jobs/{id}/profile: who is asked, what comes back, and what is refused."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from syncnorm.service.jobs.actors import WORKER
from syncnorm.trainer.contract.profile import PATIENCE_S
from tests.helpers.service.worker import Worker
from tests.service.poison.messages import PROFILE


@pytest.fixture
def training(worker: Worker) -> Worker:
    assert worker.send("heartbeat", source="rank-0", phase="training") == 200
    return worker


def ask(worker: Worker, **options: Any) -> httpx.Response:
    answer: httpx.Response = worker.client.post(f"/v1/jobs/{worker.job_id}/profile", json=options)
    return answer


def asked(worker: Worker, known: int = 0) -> Any:
    """What the ranks of the job are told."""
    found = worker.world.store.stacks.requests_of(worker.job_id, known)
    return None if found.profile is None else found.profile.model_dump()


def answer(worker: Worker, rank: int, **content: Any) -> None:
    assert worker.send("profile", rank=rank, request=asked(worker)["number"], answer=content or PROFILE) == 200


def test_all_ranks_are_asked_and_what_they_measured_is_shown(training: Worker) -> None:
    first = ask(training, seconds=2)
    told = asked(training)
    answer(training, 0)
    half = training.get("/profile")
    answer(training, 1, problem="The profile failed.", notes=["odd"])
    found = training.get("/profile")

    assert (first.status_code, first.json()["pending"]) == (202, [0, 1])
    assert {name: told[name] for name in ("seconds", "steps", "ranks")} == {
        "seconds": 2,
        "steps": None,
        "ranks": [0, 1],
    }
    assert half["pending"] == [1]
    assert (found["pending"], found["silent"], found["attempt"]) == ([], [], 1)
    assert found["items"][0]["summary"]["layers"] == PROFILE["summary"]["layers"]
    assert found["items"][0]["trace"] == "profile/step-3-rank-0.json.gz"
    assert (found["items"][1]["problem"], found["items"][1]["summary"]) == ("The profile failed.", None)


def test_the_request_is_an_event_and_an_entry_of_the_audit(training: Worker) -> None:
    ask(training, ranks=[1], steps=5)

    events = [event for event in training.get("/events")["items"] if event["kind"] == "profile_requested"]
    entries = [entry for entry in training.world.store.audit.find() if entry.action == "job.profile"]

    data = {"attempt": 1, "seconds": 5, "steps": 5, "ranks": [1]}
    assert [(event["actor"]["kind"], event["data"]) for event in events] == [("user", data)]
    assert [(entry.object, entry.after) for entry in entries] == [(training.job_id, data)]


def test_a_second_request_waits_for_the_first(training: Worker) -> None:
    ask(training)
    second = ask(training)
    for rank in (0, 1):
        answer(training, rank)
    third = ask(training, seconds=1)

    assert (second.status_code, second.json()["code"]) == (409, "profile_running")
    assert third.status_code == 202
    assert third.json()["items"] == []


def test_a_rank_that_does_not_answer_is_silent_in_the_end(training: Worker) -> None:
    ask(training, seconds=3)
    answer(training, 1)
    training.world.clock.advance(3 + PATIENCE_S + 1)

    found = training.get("/profile")

    assert (found["pending"], found["silent"]) == ([], [0])
    assert ask(training).status_code == 202


def test_an_attempt_that_ends_leaves_nothing_pending(training: Worker) -> None:
    ask(training)
    training.send("exit", result={"fence": training.attempt.fence, "outcome": "failed", "reason": "user_error"})
    for _ in range(3):
        training.world.reconciler.tick()

    found, again = training.get("/profile"), ask(training)

    assert (found["pending"], found["silent"]) == ([], [0, 1])
    assert (again.status_code, again.json()["code"]) == (409, "state_conflict")
    assert training.send("profile", rank=0, request=1, answer=PROFILE) == 409


def test_what_can_t_be_profiled_is_refused(worker: Worker) -> None:
    before = ask(worker)
    worker.send("heartbeat", source="rank-0", phase="training")
    beyond, none, long = (
        ask(worker, ranks=[2]),
        worker.client.get(f"/v1/jobs/{worker.job_id}/profile"),
        ask(worker, seconds=61),
    )

    assert (before.status_code, before.json()["code"]) == (409, "state_conflict")
    assert "has no steps to profile" in before.json()["detail"]
    assert beyond.status_code == 422
    assert beyond.json()["errors"] == [{"pointer": "/ranks", "detail": "attempt 1 has the ranks 0 to 1; got 2"}]
    assert (none.status_code, long.status_code) == (404, 422)


def test_no_rank_beyond_those_of_the_job_is_kept(training: Worker) -> None:
    ask(training)
    answer(training, 2)

    assert training.get("/profile")["items"] == []


def test_a_request_for_stacks_does_not_repeat_one_for_a_profile(training: Worker) -> None:
    ask(training)
    known = asked(training)["number"]
    training.world.store.stacks.request(training.attempt, WORKER)

    found = training.world.store.stacks.requests_of(training.job_id, known)

    assert (found.stacks, found.profile, found.newest > known) == (True, None, True)
