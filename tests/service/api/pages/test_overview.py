"""The page at /: what it shows to whom, and how much work it is."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient

from syncnorm.service.api.pages.overview import RecentReadiness
from syncnorm.service.jobs.job import JobState
from syncnorm.service.reconciler.held_lease import LEASE_S
from syncnorm.service.store import schema
from tests.helpers.service.api import ADMIN, SPEC, api
from tests.helpers.service.cluster_day import fill, finish_many, queue
from tests.helpers.service.web_page import items, rows, section, text
from tests.helpers.service.world import World

Running = tuple[TestClient, World]


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TestClient, World, dict[str, list[str]]]]:
    """With 500 jobs. For requests that change nothing."""
    with api(tmp_path_factory.mktemp("day"), auth=True) as (http, world):
        yield http, world, fill(world, 500)


def token(http: TestClient, owner: str, *scopes: str) -> dict[str, str]:
    """Headers of a user with a new token."""
    made = http.post("/v1/tokens", json={"owner": owner, "scopes": list(scopes or ("read",))}).json()
    return {"Authorization": f"Bearer {made['token']}"}


def test_empty_service_says_how_to_begin(tmp_path: Path) -> None:
    with api(tmp_path) as (http, _):
        shown = http.get("/")

    assert (shown.status_code, shown.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "No job is running." in text(shown)
    assert "No job is waiting." in text(shown)
    assert "syncnorm submit job.yaml" in text(shown)
    assert "4 of 4" in section(shown, "hosts")


def test_running_jobs_show_progress_time_left_and_their_run(
    day: tuple[TestClient, World, dict[str, list[str]]],
) -> None:
    http, _, ids = day

    shown = http.get("/")

    found = rows(shown, "running")
    assert len(found) == 2  # the third one gave way
    assert re.search(r"30 % epoch 3 of 10, step 360 of 1200", found[0])
    assert "36:15" in found[0]
    job = http.get(f"/v1/jobs/{ids['running'][0]}").json()
    assert job["mlflow"]["url"] in items(shown, "href")
    assert f"/jobs/{job['id']}" in items(shown, "href")


def test_queue_is_in_the_order_of_the_scheduler_and_says_why_the_head_waits(
    day: tuple[TestClient, World, dict[str, list[str]]],
) -> None:
    http, world, _ = day

    shown = http.get("/")

    assert world.reconciler.schedule is not None
    considered = list(world.reconciler.schedule.waits)
    listed = re.findall(r"/jobs/(job_\w+)", section(shown, "queue", tags=True))
    assert listed == considered[: len(listed)]
    assert len(listed) == 15
    head = http.get(f"/v1/jobs/{listed[0]}/explain").json()
    assert head["message"] in section(shown, "queue")
    assert "and 477 more in the queue" in section(shown, "queue")


def test_failures_say_what_happened_and_whose_turn_it_is(day: tuple[TestClient, World, dict[str, list[str]]]) -> None:
    http, _, _ = day

    found = rows(http.get("/"), "failed")

    assert len(found) == 4
    (lacking,) = [row for row in found if "out_of_memory" in row]
    assert "the owner" in lacking
    assert "A worker ran out of memory. Lower data.batch_size" in lacking


def test_owner_sees_what_the_api_lets_them_see(day: tuple[TestClient, World, dict[str, list[str]]]) -> None:
    http, _, ids = day
    bob = token(http, "bob")

    shown = http.get("/", headers=bob)

    mine = {job["id"] for job in http.get("/v1/jobs?limit=200", headers=bob).json()["items"]}
    linked = set(re.findall(r"/jobs/(job_\w+)", shown.text))
    assert linked and linked <= mine
    assert rows(shown, "running") == rows(shown, "failed") == []
    assert f"Queued {len(mine)} " in text(shown)
    assert f"and {len(mine) - 15} more in the queue" in text(shown)
    assert http.get(f"/jobs/{ids['running'][0]}", headers=bob).status_code == 404


def test_place_of_an_owner_counts_all_jobs_ahead(day: tuple[TestClient, World, dict[str, list[str]]]) -> None:
    http, _, _ = day

    (first, *_) = rows(http.get("/", headers=token(http, "bob")), "queue")

    job_id = re.findall(r"job_\w+", first)[0]
    ahead = http.get(f"/v1/jobs/{job_id}/explain").json()["jobs_ahead"]
    assert first.startswith(f"{ahead + 1} ")


def test_page_has_the_same_size_and_the_same_queries_at_any_number_of_jobs(tmp_path: Path) -> None:
    with api(tmp_path) as (http, world):
        over = fill(world, 40)
        failed, succeeded = world.job(over["failed"][0]), world.job(over["succeeded"][0])
        finish_many(world, failed, 20, JobState.FAILED)
        finish_many(world, succeeded, 20, JobState.SUCCEEDED)
        before, few = measured(http, world)
        finish_many(world, failed, 2500, JobState.FAILED, first=20)
        finish_many(world, succeeded, 2500, JobState.SUCCEEDED, first=20)
        queue(world, 5000)
        world.reconciler.tick()

        after, many = measured(http, world)
        began = time.process_time()
        shown = http.get("/")
        took_s = time.process_time() - began

    assert many == few
    assert len(after) < len(before) + 200
    assert "and 2,516 more failed" in text(shown)
    assert took_s < 1  # some 0.05 s; loading every job would take over 2 s


def measured(http: TestClient, world: World) -> tuple[str, int]:
    """The page, and how many statements it took."""
    http.get("/")  # asks whether all is ready, for the next 10 s
    statements: list[str] = []
    with world.database.read() as connection:
        engine = connection.engine
    listen = (engine, "before_cursor_execute", lambda *call: statements.append(call[2]))
    sa.event.listen(*listen)
    try:
        return http.get("/").text, len(statements)
    finally:
        sa.event.remove(*listen)


def test_job_of_another_version_hides_no_other(tmp_path: Path) -> None:
    j = schema.jobs.c
    with api(tmp_path) as (http, world):
        odd, fine = world.submit(name="odd"), world.submit(name="fine")
        ended = {"state": "failed", "reason": "user_error", "finished_at": world.clock()}
        with world.database.write() as c:
            c.execute(sa.update(schema.jobs).values(**ended))
            future = {"labels": {"of_the_future": {"a": [1]}}, "progress": {"percent": "odd"}, "model": {"uri": 7}}
            c.execute(sa.update(schema.jobs).where(j.id == odd.id).values(**future))

        found = rows(http.get("/"), "failed")

        assert sorted(row.split()[0] for row in found) == ["fine", "odd"]
        assert http.get(f"/jobs/{odd.id}").status_code == http.get(f"/jobs/{fine.id}").status_code == 200


def test_troubles_stand_at_the_top(tmp_path: Path) -> None:
    with api(tmp_path) as (http, world):
        fill(world, 12)
        world.cluster.reachable = False
        world.tracker.reachable = False
        world.reconciler.tick()

        shown = http.get("/")

    assert "Ray is unreachable." in text(shown)
    assert "MLflow does not answer." in text(shown)
    assert text(shown).index("Something is wrong") < text(shown).index("Running")
    assert "Ray is unreachable. The job stays queued" in section(shown, "queue")


def test_readiness_is_asked_for_once_in_ten_seconds_however_many_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with api(tmp_path) as (http, world):
        asked: list[float] = []
        monkeypatch.setattr(world.tracker, "is_answering", lambda: asked.append(0) is None)

        for _ in range(5):
            http.get("/")
        monkeypatch.setattr("syncnorm.service.api.pages.overview._READINESS_S", 0.0)
        http.get("/")

    assert len(asked) == 2


def test_pages_do_not_wait_for_one_that_asks(tmp_path: Path) -> None:
    with api(tmp_path) as (http, _):
        recent = RecentReadiness()
        recent._lock.acquire()  # another page asks, and MLflow is silent

        assert recent.get(http.app.state.context) is None  # type: ignore[attr-defined]


def test_standby_shows_the_queue_and_says_what_it_is(tmp_path: Path) -> None:
    with api(tmp_path) as (http, world):
        world.submit(name="waits")
        world.reconciler.leave()
        assert world.store.leases.take("another", LEASE_S) is not None
        world.cluster.reachable = False
        world.reconciler.view = None

        world.reconciler.tick()
        shown = http.get("/")

    assert "This replica stands by" in text(shown)
    assert "waits" in section(shown, "queue")


def test_query_that_has_no_effect_is_refused_and_refresh_can_be_paused(
    day: tuple[TestClient, World, dict[str, list[str]]],
) -> None:
    http, _, _ = day

    wrong, paused, live = http.get("/?page=2"), http.get("/?refresh=off"), http.get("/")

    assert (wrong.status_code, "query:page" in text(wrong)) == (422, True)
    assert ("http-equiv" in paused.text, "<script>" in paused.text) == (False, False)
    assert '<noscript><meta http-equiv="refresh" content="5"></noscript>' in live.text


def test_client_that_wants_json_is_told_where_it_is(day: tuple[TestClient, World, dict[str, list[str]]]) -> None:
    http, _, _ = day

    refused = http.get("/", headers={"Accept": "application/json"})

    assert (refused.status_code, refused.headers["content-type"]) == (406, "application/problem+json")
    assert "/v1/jobs and /v1/cluster" in refused.json()["detail"]
    assert refused.json()["available"] == ["text/html"]


def test_bearer_token_opens_the_page_too_and_needs_the_scope_read(
    day: tuple[TestClient, World, dict[str, list[str]]],
) -> None:
    http, _, _ = day

    submitter = http.get("/", headers=token(http, "ann", "submit"))

    assert submitter.status_code == 403
    assert "needs a token with the scope read" in text(submitter)
    assert http.get("/", headers={"Authorization": f"Bearer {ADMIN}"}).status_code == 200
    assert http.post("/", json=SPEC).status_code == 405
