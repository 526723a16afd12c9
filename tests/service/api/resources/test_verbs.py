"""Verbs on jobs: asking again, many at once, limits that change, and answers under a key."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from syncnorm.service.jobs.job import JobState, NewEvent
from syncnorm.trainer.contract.failure import FailureReason
from tests.helpers.service.api import SPEC, api
from tests.helpers.service.world import World
from tests.service.api.test_api import make_token, problem

Running = tuple[TestClient, World]


def submitted(client: TestClient, **spec: Any) -> str:
    return str(client.post("/v1/jobs", json=SPEC | spec).json()["id"])


def failed(world: World, reason: FailureReason = FailureReason.DEADLINE) -> str:
    """A job that failed, of which nothing runs any more."""
    job = world.submit(limits={"deadline_s": 8})
    changes = {"reason": reason, "message": "It failed.", "started_at": world.clock(), "finished_at": world.clock()}
    started = world.store.jobs.move(job, JobState.STARTING, event=NewEvent("starting", ""))
    assert started is not None
    assert world.store.jobs.move(started, JobState.FAILED, changes, event=NewEvent("failed", ""))
    world.clock.advance(60)
    return job.id


# Asking again


@pytest.mark.parametrize(("verb", "state"), [("cancel", "cancelled"), ("pause", "paused")])
def test_asking_for_what_is_so_changes_nothing(running: Running, verb: str, state: str) -> None:
    client, world = running
    job_id = submitted(client)

    first = client.post(f"/v1/jobs/{job_id}/{verb}")
    world.step()
    before = client.get(f"/v1/jobs/{job_id}").json()
    again = client.post(f"/v1/jobs/{job_id}/{verb}")

    assert (first.status_code, again.status_code, before["state"]) == (202, 200, state)
    assert again.json() == before == client.get(f"/v1/jobs/{job_id}").json()


@pytest.mark.parametrize("verb", ["resume", "retry"])
def test_a_job_that_was_put_back_can_be_asked_again(running: Running, verb: str) -> None:
    client, world = running
    if verb == "retry":
        job_id = failed(world)
    else:
        job_id = submitted(client)
        client.post(f"/v1/jobs/{job_id}/pause")
        world.step()
    first = client.post(f"/v1/jobs/{job_id}/{verb}")
    waiting = client.post(f"/v1/jobs/{job_id}/{verb}")
    world.step()
    started = client.post(f"/v1/jobs/{job_id}/{verb}")

    assert [one.status_code for one in (first, waiting, started)] == [202, 200, 200]
    assert first.json()["version"] == waiting.json()["version"]


@pytest.mark.parametrize("verb", ["resume", "retry"])
def test_a_job_that_never_stopped_is_a_conflict(running: Running, verb: str) -> None:
    client, _ = running

    body = problem(client.post(f"/v1/jobs/{submitted(client)}/{verb}"), 409, "state_conflict")

    assert (body["state"], body["allowed"]) == ("queued", ["cancel", "pause"])


def test_a_cancel_under_way_can_not_be_turned_into_a_pause(running: Running) -> None:
    client, world = running
    job_id = submitted(client, labels={"works": "99"})
    for _ in range(3):
        world.step()
    client.post(f"/v1/jobs/{job_id}/cancel")

    body = problem(client.post(f"/v1/jobs/{job_id}/pause"), 409, "state_conflict")

    assert "was asked to cancel" in body["detail"]
    assert body["allowed"] == ["cancel"]


# Many at once


def test_many_by_ids_answer_for_each(tmp_path: Path) -> None:
    with api(tmp_path, auth=True) as (client, world):
        ann, bob = make_token(client, "ann", "read", "submit"), make_token(client, "bob", "read", "submit")
        mine = [client.post("/v1/jobs", json=SPEC, headers=ann).json()["id"] for _ in range(3)]
        theirs = client.post("/v1/jobs", json=SPEC, headers=bob).json()["id"]
        client.post(f"/v1/jobs/{mine[0]}/cancel", headers=ann)
        client.post(f"/v1/jobs/{mine[1]}/pause", headers=ann)
        world.step()

        answer = client.post("/v1/jobs:pause", json={"ids": [*mine, theirs, "job_none", mine[2]]}, headers=ann)

        assert answer.status_code == 200
        items = answer.json()["items"]
        assert [(one["id"], one["ok"], one["status"]) for one in items] == [
            (mine[0], False, 409),
            (mine[1], True, 200),
            (mine[2], True, 202),
            (theirs, False, 404),
            ("job_none", False, 404),
        ]
        alone = client.post(f"/v1/jobs/{mine[0]}/pause", headers=ann).json()
        assert items[0]["problem"] == alone | {"request_id": answer.headers["X-Request-ID"]}
        assert (alone["code"], alone["state"]) == ("state_conflict", "cancelled")
        assert items[2]["job"]["id"] == mine[2]
        assert items[3]["problem"]["code"] == items[4]["problem"]["code"] == "not_found"
        assert world.job(theirs).stop is None
        client.app.state.context.audit_trail.flush()  # type: ignore[attr-defined]
        told = {(one.object, one.outcome) for one in world.store.audit.find() if one.action == "job.pause"}
        assert {(mine[0], "refused"), (mine[2], "done"), (theirs, "refused")} <= told


def test_many_by_filter_take_only_what_the_caller_sees(tmp_path: Path) -> None:
    with api(tmp_path, auth=True) as (client, world):
        ann, bob = make_token(client, "ann", "read", "submit"), make_token(client, "bob", "read", "submit")
        for owner in (ann, ann, bob):
            client.post("/v1/jobs", json=SPEC | {"labels": {"team": "a"}}, headers=owner)
        client.post("/v1/jobs", json=SPEC, headers=ann)

        body = {"filter": {"labels": {"team": "a"}, "state": ["queued", "running"]}}
        found = client.post("/v1/jobs:cancel", json=body, headers=ann).json()
        none = client.post("/v1/jobs:cancel", json={"filter": {"owner": "bob"}}, headers=ann).json()
        world.step()
        rest = client.post("/v1/jobs:cancel", json={"filter": {"state": ["queued", "starting"]}}).json()

        assert [one["status"] for one in found["items"]] == [202, 202]
        assert found["next_cursor"] is None
        assert none["items"] == []
        assert len(rest["items"]) == 2


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"ids": []},
        {"ids": ["x"], "filter": {}},
        {"ids": ["x"] * 501},
        {"filter": {"stat": 1}},
        {"ids": ["x"], "cursor": "y"},
    ],
)
def test_many_needs_ids_or_a_filter(running: Running, body: dict[str, Any]) -> None:
    client, world = running
    submitted(client)

    answer = client.post("/v1/jobs:cancel", json=body)

    assert answer.status_code == 422
    assert all(job.stop is None for job in world.store.workload.jobs(world.store.workload.versions(JobState.QUEUED)))


def test_a_filter_goes_on_behind_what_one_call_takes(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    client, _ = running
    monkeypatch.setattr("syncnorm.service.api.resources.verbs.MOST", 2)
    ids = [submitted(client) for _ in range(5)]

    asked: list[str] = []
    body: dict[str, Any] = {"filter": {}}
    for _ in range(3):
        page = client.post("/v1/jobs:pause", json=body).json()
        asked += [one["id"] for one in page["items"]]
        body["cursor"] = page["next_cursor"]

    assert asked == ids[::-1]
    assert page["next_cursor"] is None


def test_a_filter_without_state_takes_what_the_verb_can_act_on(running: Running) -> None:
    client, world = running
    done, waiting, paused = (submitted(client) for _ in range(3))
    client.post(f"/v1/jobs/{done}/cancel")
    client.post(f"/v1/jobs/{paused}/pause")
    world.step()

    def ids(verb: str) -> list[str]:
        return [one["id"] for one in client.post(f"/v1/jobs:{verb}", json={"filter": {}}).json()["items"]]

    assert ids("resume") == [paused]
    assert ids("cancel") == [paused, waiting]
    assert ids("retry") == [done]


# Limits


def test_a_deadline_that_was_too_short_is_raised_and_the_job_retried(running: Running) -> None:
    client, world = running
    job_id = failed(world)
    url = f"/v1/jobs/{job_id}"

    raised = client.patch(url, json={"limits": {"deadline_s": 900}}, headers={"If-Match": "*"})
    retried = client.post(f"{url}/retry")
    world.step()

    assert raised.status_code == 200, raised.text
    assert raised.json()["spec"]["limits"] == {**raised.json()["spec"]["limits"], "deadline_s": 900, "grace_s": 10}
    assert (retried.status_code, retried.json()["state"]) == (202, "queued")
    assert world.job(job_id).deadline_s == 900
    assert world.job(job_id).state in ("starting", "running")
    launch = next(iter(world.cluster.drivers.values())).launch
    assert launch.spec.limits.deadline_s == 900


def test_limits_change_while_queued_paused_or_failed_only(running: Running) -> None:
    client, world = running
    job_id = submitted(client, labels={"works": "99"})
    url, change = f"/v1/jobs/{job_id}", {"limits": {"max_failures": 9}}

    def patch() -> Any:
        return client.patch(url, json=change, headers={"If-Match": "*"})

    queued = patch()
    world.step()
    started = patch()
    client.post(f"{url}/pause")
    for _ in range(4):
        world.step()
    paused = patch()
    gone = client.patch(url, json={"limits": {"deadline_s": None}}, headers={"If-Match": "*"})

    assert (queued.status_code, world.job(job_id).max_failures) == (200, 9)
    body = problem(started, 409, "state_conflict")
    assert "queued, paused, failed" in body["detail"]
    assert {"state", "allowed"} <= set(body)
    assert (paused.status_code, paused.json()["state"]) == (200, "paused")
    assert gone.json()["spec"]["limits"]["deadline_s"] is None


@pytest.mark.parametrize(
    "limits", [{"deadline_s": 0}, {"grace_s": 1e9}, {"max_failures": -1}, {"deadline": 5}, {"max_failures": None}]
)
def test_limits_have_the_bounds_of_the_spec(running: Running, limits: dict[str, Any]) -> None:
    client, world = running
    job_id = submitted(client)
    before = world.job(job_id)

    answer = client.patch(f"/v1/jobs/{job_id}", json={"limits": limits}, headers={"If-Match": "*"})

    body = problem(answer, 422, "invalid_request")
    assert body["errors"][0]["pointer"].startswith("/limits/")
    assert world.job(job_id) == before


def test_a_change_to_what_is_so_makes_no_new_version(running: Running) -> None:
    client, world = running
    job_id = submitted(client)

    same = client.patch(f"/v1/jobs/{job_id}", json={"priority": 0, "labels": {}}, headers={"If-Match": "*"})

    assert (same.status_code, same.json()["version"]) == (200, 1)
    assert [event.kind for event in world.store.history.events(job_id)] == ["queued"]


# Answers under a key


def test_key_of_a_deleted_job_is_gone_and_not_created_again(running: Running) -> None:
    client, world = running
    headers = {"Idempotency-Key": "k"}
    job_id = client.post("/v1/jobs", json=SPEC, headers=headers).json()["id"]
    client.post(f"/v1/jobs/{job_id}/cancel")
    world.step()
    assert client.delete(f"/v1/jobs/{job_id}").status_code == 204

    again = client.post("/v1/jobs", json=SPEC, headers=headers)

    assert job_id in problem(again, 410, "job_deleted")["detail"]
    assert client.get("/v1/jobs").json()["items"] == []


def test_one_key_on_two_routes_is_two_requests(running: Running) -> None:
    client, _ = running
    study = {"name": "s", "base": SPEC, "grid": {"optimizer.lr": [0.1]}, "seeds": [0]}
    headers = {"Idempotency-Key": "k"}
    assert client.post("/v1/studies", json=study, headers=headers).status_code == 201

    other = client.post("/v1/jobs", json=study, headers=headers)

    problem(other, 422, "idempotency_key_reused")


def test_a_study_is_answered_again_though_the_queue_is_full(tmp_path: Path) -> None:
    study = {"name": "s", "base": SPEC, "grid": {"optimizer.lr": [0.1, 0.2]}, "seeds": [0]}
    with api(tmp_path, max_queued=2) as (client, _):
        first = client.post("/v1/studies", json=study, headers={"Idempotency-Key": "k"})
        again = client.post("/v1/studies", json=study, headers={"Idempotency-Key": "k"})

    assert (first.status_code, again.status_code) == (201, 201)
    assert again.headers["idempotency-replayed"] == "true"


def test_one_key_at_the_same_time_makes_one_study(running: Running) -> None:
    client, _ = running
    study = {"name": "s", "base": SPEC, "grid": {"optimizer.lr": [0.1]}, "seeds": [0]}

    def send(_: int) -> Any:
        return client.post("/v1/studies", json=study, headers={"Idempotency-Key": "k"})

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(send, range(8)))

    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len(client.get("/v1/studies").json()["items"]) == 1
