"""The API as a client sees it: answers, refusals, and what is stored."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from syncnorm.service.api.auth import RateLimit
from syncnorm.service.api.http.errors import ApiError
from syncnorm.service.jobs.job import JobState, NewEvent
from syncnorm.service.scheduling.explanation import CODES
from tests.helpers.service.api import ADMIN, SPEC, api
from tests.helpers.service.world import World

Running = tuple[TestClient, World]


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Running]:
    with api(tmp_path, auth=True) as pair:
        yield pair


def problem(answer: Any, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert {"type", "title", "status", "detail", "instance", "code", "request_id", "errors"} <= set(body)
    assert (body["status"], body["code"]) == (status, code)
    assert body["request_id"] == answer.headers["x-request-id"]
    return body


def finish(world: World, job_id: str) -> None:
    for _ in range(40):
        world.step()
        if world.job(job_id).is_terminal and not world.store.attempts.unreleased():
            return
    pytest.fail("not finished")


# Submit


def test_submit_answers_201_with_location_and_defaults(running: Running) -> None:
    client, _ = running

    answer = client.post("/v1/jobs", json=SPEC)

    assert answer.status_code == 201
    job = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert (job["state"], job["spec"]["optimizer"]["name"]) == ("queued", "sgd")
    assert client.get(answer.headers["location"]).json() == job


def test_same_key_and_body_gives_the_same_answer_once_stored(running: Running) -> None:
    client, world = running
    headers = {"Idempotency-Key": "k"}

    first = client.post("/v1/jobs", json=SPEC, headers=headers)
    world.apply_verb(first.json()["id"], "cancel")
    again = client.post("/v1/jobs", json=dict(reversed(SPEC.items())), headers=headers)
    other = client.post("/v1/jobs", json=SPEC | {"name": "other"}, headers=headers)

    assert (again.status_code, again.json()) == (201, first.json())
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    problem(other, 422, "idempotency_key_reused")
    assert len(client.get("/v1/jobs").json()["items"]) == 1


def test_dry_run_plans_and_stores_nothing(running: Running) -> None:
    client, _ = running

    answer = client.post("/v1/jobs?dry_run=true", json=SPEC)

    assert answer.status_code == 200
    assert (answer.json()["world_size"], answer.json()["batch"]["global"], answer.json()["fits"]) == (2, 64, "now")
    assert client.get("/v1/jobs").json()["items"] == []


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[1]",
        b"null",
        b'{"name": NaN}',
        b'{"seed": 1e999}',
        b'{"seed": 9223372036854775808}',
        b'{"name": "\\ud800"}',
        b'{"name": "a\\u0000"}',
        b'{"labels": {"\\u0000": "x"}}',
        b"[" * 3000,
        b"[" * 40 + b"]" * 40,
        b"\xff\xfe",
        json.dumps(SPEC | {"nope": 1}).encode(),
        json.dumps(SPEC | {"priority": 101}).encode(),
        json.dumps(SPEC | {"data": {"name": "digits", "batch_size": "32"}}).encode(),
        json.dumps(SPEC | {"resources": {"workers": 5}}).encode(),
        json.dumps(SPEC | {"optimizer": {"lr": 1e400}}).replace("Infinity", "1e400").encode(),
    ],
)
def test_bad_body_is_a_clear_problem_and_nothing_is_stored(running: Running, raw: bytes) -> None:
    client, _ = running

    answer = client.post("/v1/jobs", content=raw, headers={"Content-Type": "application/json"})

    assert answer.status_code in (400, 422)
    problem(answer, answer.status_code, answer.json()["code"])
    assert client.get("/v1/jobs").json()["items"] == []


def test_missing_data_folder_is_named(running: Running) -> None:
    client, _ = running
    spec = SPEC | {"data": {"name": "image_folder", "batch_size": 1, "init_args": {"root": "/no/such"}}}

    error = problem(client.post("/v1/jobs", json=spec), 422, "invalid_spec")["errors"][0]

    assert (error["pointer"], "'/no/such' does not exist" in error["detail"]) == ("/data/init_args/root", True)


def test_class_path_needs_permission(tmp_path: Path) -> None:
    spec = SPEC | {"model": {"class_path": "os.system"}}

    with api(tmp_path, allow_code=False) as (client, _):
        refused = client.post("/v1/jobs", json=spec)

    assert problem(refused, 422, "invalid_spec")["errors"][0]["pointer"] == "/model/class_path"


def test_body_over_a_megabyte_is_refused(running: Running) -> None:
    client, _ = running

    headers = {"Content-Type": "application/json"}
    declared = client.post("/v1/jobs", content=b" " * (2**20 + 1), headers=headers)
    streamed = client.post("/v1/jobs", content=(b" " * 2**18 for _ in range(5)), headers=headers)

    problem(declared, 413, declared.json()["code"])
    problem(streamed, 413, streamed.json()["code"])


# Lists


def test_list_pages_with_cursors_however_much_comes_in_between(running: Running) -> None:
    client, _ = running
    ids = [client.post("/v1/jobs", json=SPEC).json()["id"] for _ in range(7)]
    seen: list[str] = []
    cursor = None

    for _ in range(4):
        params = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        page = client.get("/v1/jobs", params=params).json()
        seen += [job["id"] for job in page["items"]]
        cursor = page["next_cursor"]
        client.post("/v1/jobs", json=SPEC)

    assert cursor is None
    assert seen == sorted(ids, reverse=True)


def test_norm_of_a_job_is_the_one_that_auto_picked(running: Running) -> None:
    http, _ = running
    made = http.post("/v1/jobs", json=SPEC | {"norm": {"kind": "auto"}}).json()

    (listed,) = http.get("/v1/jobs", params={"norm": made["norm"]}).json()["items"]

    assert (made["spec"]["norm"]["kind"], made["norm"]) == ("auto", "batch")
    assert listed["norm"] == "batch"


def test_list_filters(running: Running) -> None:
    client, _ = running
    wanted = client.post("/v1/jobs", json=SPEC | {"labels": {"team": "a:b"}, "name": "x", "project": "p"}).json()["id"]
    client.post("/v1/jobs", json=SPEC | {"labels": {"team": "c"}, "norm": {"kind": "group"}})

    for query in ("label=team:a:b", "name=x", "project=p", "norm=sync_batch", "state=queued&name=x"):
        assert [job["id"] for job in client.get(f"/v1/jobs?{query}").json()["items"]] == [wanted], query


@pytest.mark.parametrize(
    "query",
    [
        *("limit=0", "limit=201", "limit=18446744073709551616", "cursor=zzz", "cursor=%00", "state=nope", "label=x"),
        *("created_after=yesterday", "created_after=2026-01-01T00:00:00", "sort=color"),
    ],
)
def test_bad_query_is_a_clear_problem(running: Running, query: str) -> None:
    client, _ = running

    answer = client.get(f"/v1/jobs?{query}")

    problem(answer, 422, answer.json()["code"])


# Verbs


def test_verbs_follow_the_state_and_say_what_is_allowed(running: Running) -> None:
    client, world = running
    job_id = client.post("/v1/jobs", json=SPEC).json()["id"]

    early = client.post(f"/v1/jobs/{job_id}/resume")
    client.post(f"/v1/jobs/{job_id}/pause")
    world.step()
    paused = client.get(f"/v1/jobs/{job_id}").json()["state"]
    resumed = client.post(f"/v1/jobs/{job_id}/resume")
    finish(world, job_id)
    late = client.post(f"/v1/jobs/{job_id}/cancel")

    assert problem(early, 409, "state_conflict")["allowed"] == ["cancel", "pause"]
    assert (paused, resumed.json()["state"]) == ("paused", "queued")
    body = problem(late, 409, "state_conflict")
    assert (body["state"], body["allowed"]) == ("succeeded", ["delete"])


def test_cancelling_twice_changes_nothing(running: Running) -> None:
    client, _ = running
    job_id = client.post("/v1/jobs", json=SPEC).json()["id"]

    first = client.post(f"/v1/jobs/{job_id}/cancel")
    second = client.post(f"/v1/jobs/{job_id}/cancel")

    assert (first.status_code, second.status_code) == (202, 202)
    assert first.json()["version"] == second.json()["version"]


def test_patch_needs_the_current_etag(running: Running) -> None:
    client, _ = running
    job_id = client.post("/v1/jobs", json=SPEC).json()["id"]
    url = f"/v1/jobs/{job_id}"
    etag = client.get(url).headers["etag"]
    change = {"priority": 5, "labels": {"team": "z"}}

    without = client.patch(url, json=change)
    done = client.patch(url, json=change, headers={"If-Match": etag})
    stale = client.patch(url, json=change, headers={"If-Match": etag})

    problem(without, 428, "precondition_required")
    problem(stale, 412, "precondition_failed")
    assert (done.json()["priority"], done.json()["labels"]) == (5, {"team": "z"})
    assert [job["id"] for job in client.get("/v1/jobs?label=team:z").json()["items"]] == [job_id]


def test_only_finished_jobs_can_be_deleted_and_their_files_go_along(running: Running) -> None:
    client, world = running
    job_id, other = (client.post("/v1/jobs", json=SPEC | {"name": name}).json()["id"] for name in "ab")

    early = client.delete(f"/v1/jobs/{job_id}")
    finish(world, job_id)
    finish(world, other)
    done = client.delete(f"/v1/jobs/{job_id}")
    world.step()

    problem(early, 409, "state_conflict")
    assert done.status_code == 204
    problem(client.get(f"/v1/jobs/{job_id}"), 404, "not_found")
    assert [path.name for path in (world.folder / "jobs").iterdir()] == [other]


# What is kept of a job


def test_explain_names_reason_numbers_and_blockers(running: Running) -> None:
    client, world = running
    first = client.post("/v1/jobs", json=SPEC | {"resources": {"workers": 3}, "labels": {"works": "99"}}).json()["id"]
    world.step()
    second = client.post("/v1/jobs", json=SPEC).json()["id"]
    world.clock.advance(1)
    third = client.post("/v1/jobs", json=SPEC).json()["id"]
    world.step()

    running_one = client.get(f"/v1/jobs/{first}/explain").json()
    head = client.get(f"/v1/jobs/{second}/explain").json()
    behind = client.get(f"/v1/jobs/{third}/explain").json()

    assert running_one["code"] in ("workers_starting", "training")
    assert (head["code"], head["shortfall"]["workers_missing"], head["blockers"]) == ("no_room", 1, [first])
    assert (behind["code"], behind["jobs_ahead"]) == ("no_room_behind", 1)
    assert {running_one["code"], head["code"], behind["code"]} <= set(CODES)


def test_explain_without_a_cluster(running: Running) -> None:
    client, world = running
    job_id = client.post("/v1/jobs", json=SPEC).json()["id"]
    world.cluster.reachable = False
    world.step()

    assert client.get(f"/v1/jobs/{job_id}/explain").json()["code"] == "cluster_unreachable"


def test_attempts_checkpoints_and_statistics_of_a_job(running: Running) -> None:
    client, world = running
    job_id = client.post("/v1/jobs", json=SPEC | {"labels": {"works": "9"}}).json()["id"]
    for _ in range(3):
        world.step()
    client.post(f"/v1/jobs/{job_id}/pause")
    for _ in range(3):
        world.step()

    attempts = client.get(f"/v1/jobs/{job_id}/attempts").json()["items"]
    checkpoints = client.get(f"/v1/jobs/{job_id}/checkpoints").json()["items"]
    statistics = client.get(f"/v1/jobs/{job_id}/statistics").json()["items"]

    assert (attempts[0]["outcome"], list(attempts[0]["phases"])) == ("stopped", ["training"])
    assert checkpoints[0]["step"] == attempts[0]["step"]
    assert statistics[0]["layer"] == "bn1"
    assert statistics[0]["points"] == [{"step": 1, "running_mean_abs": None, "running_var_mean": None, "drift": 0.5}]


def test_statistics_that_are_no_numbers_are_words(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    client, world = running
    job = world.submit(labels={"works": "9"})
    for _ in range(3):
        world.step()
    points = {"norm/bn1/drift": [(1, math.nan), (2, math.inf), (3, -math.inf), (4, 0.5)]}
    monkeypatch.setattr(world.tracker, "histories", lambda *_: points)

    (layer,) = client.get(f"/v1/jobs/{job.id}/statistics").json()["items"]

    assert [point["drift"] for point in layer["points"]] == ["NaN", "Infinity", "-Infinity", 0.5]


@pytest.mark.parametrize(
    ("facts", "shown"),
    [
        (
            {"estimator": "pooled", "mean_abs": {"bn1": 0.25}, "var_mean": {"bn1": 2.0}, "drift": {"bn1": 0.1}},
            ({"mean_abs": 0.25, "var_mean": 2.0, "drift": 0.1}, 0.1),
        ),
        ({"estimator": "pooled", "drift": {"bn1": 0.1}}, (None, 0.1)),  # as certificates said before
        (None, (None, None)),  # statistics.population: none
    ],
)
def test_population_statistics_of_a_layer(running: Running, facts: Any, shown: Any) -> None:
    client, world = running
    job = world.submit(labels={"works": "9"})
    for _ in range(3):
        world.step()
    now = world.store.jobs.get(job.id)
    assert now is not None
    model = {"uri": "models:/m-1", "registered": None, "certificate": {"passed": True, "population": facts}}
    assert world.store.jobs.move(now, JobState.SUCCEEDED, {"model": model}, event=NewEvent("succeeded", ""))

    (layer,) = client.get(f"/v1/jobs/{job.id}/statistics").json()["items"]

    assert (layer["population"], layer["population_drift"]) == shown


def test_exports_of_a_job_are_listed_with_their_digests(running: Running) -> None:
    client, world = running
    job = world.submit()
    before = client.get(f"/v1/jobs/{job.id}/exports").json()["items"]
    proof = {"passed": True, "files": {"model.pt2": "0" * 64}, "checks": []}
    model = {"uri": "models:/m-1", "registered": None, "certificate": proof}
    started = world.store.jobs.move(job, JobState.STARTING, event=NewEvent("starting", ""))
    assert started is not None
    assert world.store.jobs.move(started, JobState.SUCCEEDED, {"model": model}, event=NewEvent("succeeded", ""))

    after = client.get(f"/v1/jobs/{job.id}/exports").json()["items"]

    assert before == []
    (first,) = after
    assert {**first, **model, "path": "export", "passed": True, "files": proof["files"]} == first
    assert (first["name"], first["state"], first["export"]) == ("1", "succeeded", job.spec.document["export"])
    assert client.get(f"/v1/jobs/{job.id}/exports/1").json() == first


def test_logs_in_every_form(running: Running) -> None:
    client, world = running
    job_id = client.post("/v1/jobs", json=SPEC | {"labels": {"works": "9"}}).json()["id"]
    world.step()
    driver = next(iter(world.cluster.drivers.values()))
    token = json.loads((driver.folder / "launch.json").read_text())["token"]
    lines = [
        {"rank": seq % 2, "seq": seq, "at": "2026-01-01T00:00:00Z", "level": "INFO", "text": f"line {seq}%"}
        for seq in range(1, 6)
    ]
    url = f"/internal/v1/attempts/{driver.launch.attempt_id}/logs"
    for _ in range(2):  # sent twice, kept once
        sent = client.post(
            url, json={"fence": driver.launch.fence, "lines": lines}, headers={"Authorization": f"Bearer {token}"}
        )
        assert sent.status_code == 200

    def get(query: str = "", accept: str = "application/json") -> Any:
        return client.get(f"/v1/jobs/{job_id}/logs{query}", headers={"Accept": accept})

    assert [line["seq"] for line in get().json()["items"]] == [1, 2, 3, 4, 5]
    assert [line["seq"] for line in get("?rank=1").json()["items"]] == [1, 3, 5]
    assert [line["seq"] for line in get("?tail=2").json()["items"]] == [4, 5]
    assert [line["seq"] for line in get("?q=3%25").json()["items"]] == [3]
    assert get(accept="text/plain").text.splitlines()[0] == "2026-01-01T00:00:00Z rank 1 INFO line 1%"
    assert len(get(accept="application/x-ndjson").text.splitlines()) == 5


def test_worker_messages_need_token_and_current_fence(running: Running) -> None:
    client, world = running
    job_id = client.post("/v1/jobs", json=SPEC | {"labels": {"works": "9"}}).json()["id"]
    world.step()
    launch = next(iter(world.cluster.drivers.values())).launch
    url = f"/internal/v1/attempts/{launch.attempt_id}/heartbeat"
    body = {"fence": launch.fence, "source": "driver", "phase": "training", "step": 1}
    headers = {"Authorization": f"Bearer {launch.token}"}

    fine = client.post(url, json=body, headers=headers)
    nobody = client.post(url, json=body)
    wrong = client.post(url, json=body | {"fence": "0" * 32}, headers=headers)
    client.post(f"/v1/jobs/{job_id}/cancel")
    told = client.post(url, json=body, headers=headers)
    world.step()
    world.step()
    late = client.post(url, json=body, headers=headers)

    assert fine.json() == {"stop": None, "lease_s": 30.0}
    problem(nobody, 401, "unauthorized")
    problem(wrong, 401, "unauthorized")
    assert told.json()["stop"] == "cancel"
    problem(late, 409, "stale_fence")


# Framework, catalog, health


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("PUT", "/v1/jobs", 405, "method_not_allowed"),
        ("GET", "/v1/jobs/job_unknown", 404, "not_found"),
        ("GET", "/v1/jobs/job_unknown/logs?tail=x", 422, "invalid_request"),
    ],
)
def test_framework_errors_are_problems_too(running: Running, method: str, path: str, status: int, code: str) -> None:
    client, _ = running

    problem(client.request(method, path), status, code)


def test_unexpected_error_is_a_problem_that_tells_no_secrets(
    running: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client, world = running
    monkeypatch.setattr(world.store.jobs, "get", lambda _: 1 / 0)

    answer = client.get("/v1/jobs/job_1")

    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert "ZeroDivisionError" not in answer.text
    (record,) = [record for record in caplog.records if record.message == "request failed with an internal error"]
    assert vars(record)["request_id"] == answer.json()["request_id"] == answer.headers["x-request-id"]


def test_catalog_cluster_health_and_metrics(running: Running) -> None:
    client, world = running
    job_id = client.post("/v1/jobs", json=SPEC).json()["id"]
    finish(world, job_id)

    assert {"sync_batch", "group"} <= {kind["name"] for kind in client.get("/v1/norms").json()["items"]}
    assert {"resnet", "unet"} <= {model["name"] for model in client.get("/v1/models").json()["items"]}
    assert "digits" in {data["name"] for data in client.get("/v1/datasets").json()["items"]}
    assert client.get("/v1/cluster").json()["nodes"][0]["cpus"] == 4
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json()["ready"] is True
    assert 'syncnorm_jobs{state="succeeded"} 1.0' in client.get("/metrics").text


# Auth


def make_token(client: TestClient, owner: str, *scopes: str) -> dict[str, str]:
    answer = client.post("/v1/tokens", json={"owner": owner, "scopes": list(scopes)})
    assert answer.status_code == 201, answer.text
    return {"Authorization": f"Bearer {answer.json()['token']}"}


def test_every_cell_of_the_authorisation_matrix(guarded: Running) -> None:
    client, _ = guarded
    reader, submitter = make_token(client, "ann", "read"), make_token(client, "ann", "read", "submit")
    stranger, admin = make_token(client, "bob", "read", "submit"), {"Authorization": f"Bearer {ADMIN}"}
    job_id = client.post("/v1/jobs", json=SPEC, headers=submitter).json()["id"]
    nobody = {"Authorization": ""}
    wrong = {"Authorization": "Bearer sn_0123456789abcdef_" + "x" * 43}
    routes = {
        ("GET", f"/v1/jobs/{job_id}"): (200, 200, 404, 200),
        ("GET", f"/v1/jobs/{job_id}/logs"): (200, 200, 404, 200),
        ("GET", f"/v1/jobs/{job_id}/events"): (200, 200, 404, 200),
        ("GET", f"/v1/jobs/{job_id}/explain"): (200, 200, 404, 200),
        ("GET", f"/v1/jobs/{job_id}/stacks"): (409, 409, 404, 409),
        ("GET", f"/v1/jobs/{job_id}/profile"): (404, 404, 404, 404),
        ("GET", "/v1/jobs"): (200, 200, 200, 200),
        ("GET", "/v1/cluster"): (200, 200, 200, 200),
        ("POST", f"/v1/jobs/{job_id}/resume"): (403, 409, 404, 409),
        ("DELETE", f"/v1/jobs/{job_id}"): (403, 409, 404, 409),
        ("GET", "/v1/tokens"): (403, 403, 403, 200),
    }

    for (method, path), expected in routes.items():
        for headers, status in zip((reader, submitter, stranger, admin), expected, strict=True):
            assert client.request(method, path, headers=headers).status_code == status, (method, path, headers)
        for headers in (nobody, wrong):
            problem(client.request(method, path, headers=headers), 401, "unauthorized")
    assert client.get("/v1/jobs", headers=stranger).json()["items"] == []
    assert client.get("/healthz", headers=nobody).status_code == 200


def test_revoked_and_expired_tokens_stop_working(guarded: Running) -> None:
    client, world = guarded
    soon = (world.clock() + timedelta(seconds=60)).isoformat()
    made = client.post("/v1/tokens", json={"owner": "ann", "scopes": ["read"], "expires_at": soon}).json()
    other = client.post("/v1/tokens", json={"owner": "ann", "scopes": ["read"]}).json()
    first, second = ({"Authorization": f"Bearer {token['token']}"} for token in (made, other))

    before = [client.get("/v1/jobs", headers=headers).status_code for headers in (first, second)]
    world.clock.advance(61)
    client.delete(f"/v1/tokens/{other['id']}")
    after = [client.get("/v1/jobs", headers=headers).status_code for headers in (first, second)]

    assert (before, after) == ([200, 200], [401, 401])


def test_secret_of_a_token_is_stored_nowhere(guarded: Running) -> None:
    client, world = guarded
    secret = client.post("/v1/tokens", json={"owner": "ann"}).json()["token"].split("_", 2)[2]

    kept = (world.folder / "service.db").read_bytes() + (world.folder / "service.db-wal").read_bytes()

    assert secret.encode() not in kept
    assert secret not in client.get("/v1/tokens").text


def test_changes_leave_an_audit_line(guarded: Running) -> None:
    client, world = guarded
    submitter = make_token(client, "ann", "read", "submit")

    answer = client.post("/v1/jobs", json=SPEC, headers=submitter)
    denied = client.post("/v1/tokens", json={"owner": "eve"}, headers=submitter)
    client.app.state.context.audit_trail.flush()  # type: ignore[attr-defined]

    kept = [(one.owner, one.action, one.outcome, one.request_id) for one in world.store.audit.find()]
    assert ("ann", "job.submit", "done", answer.headers["x-request-id"]) in kept
    assert ("ann", "token.create", "refused", denied.headers["x-request-id"]) in kept


def test_rate_limit_answers_when_to_try_again() -> None:
    now = [0.0]
    limit = RateLimit(2, clock=lambda: now[0])
    for _ in range(4):
        limit.take("ann")

    with pytest.raises(ApiError) as refused:
        limit.take("ann")
    limit.take("bob")
    now[0] += 0.5
    limit.take("ann")

    assert (refused.value.status, refused.value.headers["Retry-After"]) == (429, "1")


def test_queue_of_one_owner_is_limited(tmp_path: Path) -> None:
    with api(tmp_path, max_queued=2) as (client, _):
        answers = [client.post("/v1/jobs", json=SPEC) for _ in range(3)]

    assert [answer.status_code for answer in answers] == [201, 201, 429]
    assert answers[2].headers["retry-after"] == "60"
