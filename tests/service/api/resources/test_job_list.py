"""The job list: what it shows, its filters and orders, and pages that miss nothing."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from syncnorm.service.api.http.pagination import encode
from syncnorm.service.api.resources.job_list import listing_of
from syncnorm.service.jobs.job import JobState, NewEvent, new_job_id
from syncnorm.service.store import JobQuery
from tests.helpers.service.api import SPEC, api
from tests.helpers.service.world import World
from tests.service.api.test_api import make_token, problem

Running = tuple[TestClient, World]
SORTS = [sign + by for by in ("created_at", "finished_at", "name", "priority", "state") for sign in ("", "-")]


def submit(http: TestClient, **changes: Any) -> str:
    return str(http.post("/v1/jobs", json=SPEC | changes).json()["id"])


def ids(http: TestClient, query: str) -> list[str]:
    return [job["id"] for job in http.get(f"/v1/jobs?{query}").json()["items"]]


def end(world: World, job_id: str, state: JobState) -> None:
    world.clock.advance(1)
    job = world.job(job_id)
    steps = [JobState.STARTING, state] if state is JobState.SUCCEEDED else [state]
    for to in steps:
        changes = {"finished_at": world.clock()} if to is state else {}
        moved = world.store.jobs.move(job, to, changes, event=NewEvent(to, ""))
        assert moved is not None
        job = moved


# What is shown


def test_list_leaves_spec_and_certificate_out_unless_asked(running: Running) -> None:
    http, world = running
    job_id = submit(http)
    proof = {"passed": True, "checks": ["x" * 2000]}
    started = world.store.jobs.move(world.job(job_id), JobState.STARTING, event=NewEvent("starting", ""))
    assert started is not None
    model = {"uri": "models:/m-1", "registered": None, "certificate": proof}
    world.store.jobs.move(started, JobState.SUCCEEDED, {"model": model}, event=NewEvent("succeeded", ""))
    single = http.get(f"/v1/jobs/{job_id}").json()

    (slim,) = http.get("/v1/jobs").json()["items"]
    (full,) = http.get("/v1/jobs?full=true").json()["items"]

    assert full == single
    assert slim == single | {"spec": None, "model": model | {"certificate": None}}
    assert slim["workers"] == single["spec"]["resources"]["workers"]
    assert len(json.dumps(slim)) < 1000


@pytest.mark.parametrize(
    ("state", "percent", "eta_s"),
    [
        (JobState.RUNNING, 40.0, 75.0),
        (JobState.CANCELLED, 40.0, None),
        (JobState.FAILED, 40.0, None),
        (JobState.SUCCEEDED, 100.0, None),
        (JobState.QUEUED, 40.0, None),
    ],
)
def test_remaining_time_is_shown_of_running_jobs_only(
    running: Running, state: JobState, percent: float, eta_s: float | None
) -> None:
    http, world = running
    job_id = submit(http)
    progress = {"step": 4, "steps": 10, "percent": 40.0, "eta_s": 75.0, "metrics": {}}
    moved = world.store.jobs.move(world.job(job_id), JobState.STARTING, {"progress": progress}, event=NewEvent("a", ""))
    assert moved is not None
    if state in (JobState.CANCELLED, JobState.QUEUED):
        moved = world.store.jobs.move(moved, JobState.RUNNING, event=NewEvent("b", ""))
        assert moved is not None
    if state is JobState.CANCELLED:
        moved = world.store.jobs.move(moved, JobState.STOPPING, event=NewEvent("c", ""))
        assert moved is not None
    assert world.store.jobs.move(moved, state, event=NewEvent("d", ""))

    (listed,), single = http.get("/v1/jobs").json()["items"], http.get(f"/v1/jobs/{job_id}").json()

    assert listed["progress"] == single["progress"]
    assert (listed["progress"]["percent"], listed["progress"]["eta_s"]) == (percent, eta_s)


def test_number_that_json_has_no_form_for_is_a_word_everywhere(running: Running) -> None:
    http, world = running
    job_id = submit(http)
    metrics = {"val/dice": "NaN", "up": "Infinity", "down": "-Infinity", "loss": 0.5}
    certificate = {"worst": float("nan")}
    started = world.store.jobs.move(world.job(job_id), JobState.STARTING, event=NewEvent("starting", ""))
    assert started is not None
    changes = {
        "progress": {"step": 1, "metrics": {**metrics, "val/dice": float("nan")}},
        "model": {"uri": "u", "registered": None, "certificate": certificate},
    }
    world.store.jobs.move(started, JobState.SUCCEEDED, changes, event=NewEvent("end", "", {"drift": float("inf")}))

    shown = [
        http.get(f"/v1/jobs/{job_id}"),
        http.get("/v1/jobs?full=true"),
        http.get(f"/v1/jobs/{job_id}/events"),
        http.get(f"/v1/jobs/{job_id}/exports"),
        http.get(f"/v1/jobs/{job_id}/events", headers={"Accept": "text/event-stream"}),
    ]

    for answer in shown:
        assert answer.status_code == 200
        assert ": NaN" not in answer.text
        assert ":NaN" not in answer.text
    assert shown[0].json()["progress"]["metrics"] == metrics
    assert shown[0].json()["model"]["certificate"] == {"worst": "NaN"}
    assert shown[1].json()["items"][0]["progress"]["metrics"] == metrics
    assert shown[2].json()["items"][-1]["data"]["drift"] == "Infinity"


# Filters


def test_any_of_several_states_and_all_of_several_labels(running: Running) -> None:
    http, world = running
    a = submit(http, labels={"team": "vision", "try": "1"})
    b = submit(http, labels={"team": "vision", "try": "2"})
    c = submit(http, labels={"team": "audio", "try": "1"})
    end(world, b, JobState.CANCELLED)
    end(world, c, JobState.SUCCEEDED)

    assert ids(http, "state=queued&state=cancelled") == [b, a]
    assert ids(http, "state=succeeded&state=cancelled&state=failed") == [c, b]
    assert ids(http, "label=team:vision&label=try:1") == [a]
    assert ids(http, "label=team:vision&label=team:audio") == []
    assert ids(http, "label=try:1&state=succeeded") == [c]


# Order


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """Twelve jobs that are equal in much."""
    with api(tmp_path_factory.mktemp("mixed")) as (http, world):
        _fill(http, world)
        yield http


def _fill(http: TestClient, world: World) -> None:
    made = [submit(http, name=f"n{number % 3}", priority=number % 4 - 2) for number in range(12)]
    for job_id in made[::3]:
        end(world, job_id, JobState.CANCELLED)
    for job_id in made[1::6]:
        end(world, job_id, JobState.SUCCEEDED)


@pytest.mark.parametrize("sort", SORTS)
def test_pages_of_every_order_hold_every_job_once_in_that_order(mixed: TestClient, sort: str) -> None:
    http = mixed
    jobs = http.get("/v1/jobs?limit=200").json()["items"]
    by, descending = sort.lstrip("-"), sort.startswith("-")
    known = sorted((job for job in jobs if job[by] is not None), key=lambda job: (job[by], job["id"]))
    unknown = sorted((job for job in jobs if job[by] is None), key=lambda job: job["id"])
    expected = [*reversed(known), *reversed(unknown)] if descending else [*known, *unknown]
    seen: list[str] = []
    query: str | None = f"sort={sort}&limit=5"

    while query:
        page = http.get(f"/v1/jobs?{query}").json()
        seen += [job["id"] for job in page["items"]]
        submit(http, name="n1")  # comes in between, and may be seen
        query = f"sort={sort}&limit=5&cursor={page['next_cursor']}" if page["next_cursor"] else None

    assert len(seen) == len(set(seen))
    assert [job_id for job_id in seen if job_id in {job["id"] for job in jobs}] == [job["id"] for job in expected]


@pytest.mark.parametrize(
    "other",
    ["sort=created_at", "sort=-name", "state=queued", "label=a:b", "name=job", "created_after=2026-01-01T00:00:00Z"],
)
def test_cursor_is_good_for_its_own_filters_and_order_only(mixed: TestClient, other: str) -> None:
    cursor = mixed.get("/v1/jobs?limit=2").json()["next_cursor"]

    refused = mixed.get(f"/v1/jobs?{other}&cursor={cursor}")

    assert "other filters or another sort" in problem(refused, 422, "invalid_cursor")["detail"]
    assert mixed.get(f"/v1/jobs?limit=7&cursor={cursor}").status_code == 200


def test_cursor_of_one_record_is_none_of_another(running: Running) -> None:
    http, world = running
    first, second = submit(http), submit(http)
    for number in range(3):
        world.store.history.add_event(first, NewEvent("note", str(number)))
    cursor = http.get(f"/v1/jobs/{first}/events?limit=2").json()["next_cursor"]

    assert http.get(f"/v1/jobs/{first}/events?cursor={cursor}").status_code == 200
    for path in (f"/v1/jobs/{second}/events", f"/v1/jobs/{first}/logs", "/v1/jobs", "/v1/studies"):
        problem(http.get(f"{path}?cursor={cursor}"), 422, "invalid_cursor")


@pytest.mark.parametrize("value", [None, "x", 1, 2**70, True, 1.5, [], "\x00", "9999-12-31T23:59:59.999999-23:59"])
def test_forged_cursor_is_refused_and_never_an_internal_error(mixed: TestClient, value: Any) -> None:
    for sort, job_id in itertools.product(SORTS, ("job_1", "\x00", 3)):
        listing = listing_of(JobQuery(sort=sort))

        answer = mixed.get("/v1/jobs", params={"sort": sort, "cursor": encode(listing, value, job_id)})  # type: ignore[arg-type]

        assert answer.status_code in (200, 422), answer.text


def test_owner_sees_own_jobs_in_every_order(tmp_path: Path) -> None:
    with api(tmp_path, auth=True) as (http, _):
        ann, bob = make_token(http, "ann", "read", "submit"), make_token(http, "bob", "read", "submit")
        for headers in (ann, bob, ann):
            http.post("/v1/jobs", json=SPEC, headers=headers)

        for sort in SORTS:
            owners = [job["owner"] for job in http.get(f"/v1/jobs?sort={sort}", headers=ann).json()["items"]]
            assert owners == ["ann", "ann"]


# Ids


def test_ids_sort_in_the_order_they_were_made_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("syncnorm.service.jobs.job._last_number", 0)  # so that later ids are of their own time again
    monkeypatch.setattr("syncnorm.service.jobs.job.time.time_ns", lambda: 1_800_000_000_000_000_000)  # one millisecond

    made = [new_job_id() for _ in range(1000)]

    assert made == sorted(set(made))
    assert {len(one) for one in made} == {30}


def test_children_of_a_study_are_listed_in_the_order_of_its_grid(http: TestClient) -> None:
    grid = {"norm.kind": ["batch", "group", "layer"], "optimizer.lr": [0.1, 0.2]}
    study = {"name": "s", "base": {key: SPEC[key] for key in ("model", "data")}, "grid": grid, "seeds": [0, 1]}
    http.post("/v1/studies", json=study)

    names = [job["name"] for job in http.get("/v1/jobs?sort=created_at").json()["items"]]

    assert names == [f"s-{number:03d}" for number in range(1, 13)]
