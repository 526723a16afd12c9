"""More seeds for a study that exists: nothing but the seed differs, and nothing is added twice or in part."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient

from syncnorm.service.store import JobQuery
from syncnorm.service.store import schema as t
from tests.helpers.service.api import SPEC, api, api_of
from tests.helpers.service.world import World
from tests.service.api.test_api import problem
from tests.service.api.test_study_api import STUDY, context, submit, work

Running = tuple[TestClient, World]


def add(client: TestClient, study_id: str, *seeds: int) -> dict[str, Any]:
    answer = client.post(f"/v1/studies/{study_id}/seeds", json={"seeds": list(seeds)})
    assert answer.status_code == 202, answer.text
    found: dict[str, Any] = answer.json()
    return found


def children(client: TestClient, study_id: str) -> list[tuple[int, str, int]]:
    """Number, place and seed of each job."""
    found = client.get(f"/v1/studies/{study_id}").json()["children"]
    return [(child["number"], child["point"]["norm.kind"], child["seed"]) for child in found]


def test_every_place_runs_with_each_new_seed_and_the_report_covers_all(running: Running) -> None:
    client, world = running
    study_id = submit(client)
    work(client, world, study_id)
    context(client).studies.tick()
    run_id = world.study_runs.runs[study_id]
    world.study_runs.files.clear()

    added = add(client, study_id, 7, 5)
    study = work(client, world, study_id)
    context(client).studies.tick()

    assert added["jobs"] == {"succeeded": 4, "queued": 4}
    assert children(client, study_id)[4:] == [(5, "batch", 7), (6, "batch", 5), (7, "group", 7), (8, "group", 5)]
    assert study["spec"]["seeds"] == [0, 1, 7, 5]
    assert [(row["jobs"], row["succeeded"]) for row in study["table"]] == [(4, 4), (4, 4)]
    assert study["findings"][0]["sentence"].endswith("over 4 seeds.")
    assert world.study_runs.metrics[run_id]["study/succeeded"] == 8
    assert set(world.study_runs.parents.values()) == {run_id}
    assert len(world.study_runs.parents) == 8
    assert "Seeds: 0, 1, 7, 5." in world.study_runs.notes[run_id]
    assert b'"seeds": [\n  0,\n  1,\n  7,\n  5\n ]' in world.study_runs.files[run_id]["study.json"]


def test_new_jobs_differ_from_the_others_at_their_place_in_name_and_seed_alone(running: Running) -> None:
    client, _ = running
    study_id = submit(client)

    add(client, study_id, 9)

    jobs = client.get(f"/v1/jobs?label=study:{study_id}").json()["items"]
    specs = {job["name"]: client.get(f"/v1/jobs/{job['id']}").json()["spec"] for job in jobs}
    for old, new in (("kinds-001", "kinds-005"), ("kinds-003", "kinds-006")):
        assert specs[new] == specs[old] | {"name": new, "seed": 9}


def test_seeds_that_the_study_has_are_left_as_they_are(running: Running) -> None:
    client, world = running
    study_id = submit(client)

    first, again, mixed = (add(client, study_id, *seeds) for seeds in ((2,), (2, 0, 2), (0, 2, 3)))

    assert [sum(found["jobs"].values()) for found in (first, again, mixed)] == [6, 6, 8]
    assert len(set(children(client, study_id))) == len(world.store.jobs.find(JobQuery())) == 8


def test_of_many_requests_at_once_each_seed_is_added_once(running: Running) -> None:
    client, _ = running
    study_id = submit(client, seeds=[0])

    with ThreadPoolExecutor(4) as pool:
        answers = list(
            pool.map(lambda seed: client.post(f"/v1/studies/{study_id}/seeds", json={"seeds": [seed, 9]}), range(1, 5))
        )

    assert [answer.status_code for answer in answers] == [202] * 4
    found = children(client, study_id)
    assert sorted((place, seed) for _, place, seed in found) == [
        (place, seed) for place in ("batch", "group") for seed in (0, 1, 2, 3, 4, 9)
    ]
    assert [number for number, _, _ in found] == list(range(1, 13))


@pytest.mark.parametrize(
    ("seeds", "grid", "detail"),
    [
        (range(2, 101), ["batch"], "a study must not exceed 100 seeds, got 101 with those it has"),
        (range(2, 90), ["batch", "group", "layer", "instance", "none", "sync_batch"], "500 jobs, got 540"),
    ],
)
def test_a_study_does_not_outgrow_its_limits(running: Running, seeds: range, grid: list[str], detail: str) -> None:
    client, world = running
    study_id = submit(client, grid={"norm.kind": grid}, claims=[])

    answer = client.post(f"/v1/studies/{study_id}/seeds", json={"seeds": list(seeds)})

    (found,) = problem(answer, 422, "invalid_spec")["errors"]
    assert found["pointer"] == "/seeds"
    assert detail in found["detail"]
    assert len(world.store.jobs.find(JobQuery())) == 2 * len(grid)


def test_more_jobs_than_an_owner_may_have_are_refused_as_a_whole(tmp_path: Path) -> None:
    with api(tmp_path, max_queued=7) as (client, world):
        study_id = submit(client)

        problem(client.post(f"/v1/studies/{study_id}/seeds", json={"seeds": [2, 3]}), 429, "too_many_jobs")

        assert len(world.store.jobs.find(JobQuery())) == 4
        assert client.get(f"/v1/studies/{study_id}").json()["spec"]["seeds"] == [0, 1]
        assert sum(add(client, study_id, 2)["jobs"].values()) == 6


def test_a_place_whose_jobs_are_all_deleted_is_named(running: Running) -> None:
    client, world = running
    study_id = submit(client)
    ids = [child["job_id"] for child in work(client, world, study_id)["children"]]
    world.step()
    client.delete(f"/v1/jobs/{ids[0]}")
    one_is_left = add(client, study_id, 2)
    ids += [child["job_id"] for child in work(client, world, study_id)["children"][4:]]
    world.step()
    for job_id in (ids[1], ids[4]):
        client.delete(f"/v1/jobs/{job_id}")

    answer = client.post(f"/v1/studies/{study_id}/seeds", json={"seeds": [3]})

    assert one_is_left["jobs"] == {"deleted": 1, "succeeded": 3, "queued": 2}
    assert "that no other can be made like them: norm.kind batch." in problem(answer, 409, "state_conflict")["detail"]
    assert client.get(f"/v1/studies/{study_id}").json()["spec"]["seeds"] == [0, 1, 2]


def test_study_whose_rows_are_damaged_is_left_alone(running: Running) -> None:
    client, world = running
    study_id, other_id = submit(client), submit(client)
    with world.database.write() as c:
        c.execute(sa.update(t.studies).where(t.studies.c.id == study_id).values(spec={"seeds": "none"}))

    answer = client.post(f"/v1/studies/{study_id}/seeds", json={"seeds": [3]})

    assert "The stored spec of study" in problem(answer, 409, "state_conflict")["detail"]
    assert sum(add(client, other_id, 3)["jobs"].values()) == 6


def test_study_of_somebody_else_is_not_there(tmp_path: Path) -> None:
    with api(tmp_path, auth=True) as (client, _):
        tokens = [client.post("/v1/tokens", json={"owner": name}).json()["token"] for name in ("ann", "bob")]
        ann, bob = ({"Authorization": f"Bearer {token}"} for token in tokens)
        study_id = client.post("/v1/studies", json=STUDY, headers=ann).json()["id"]

        answers = [client.post(f"/v1/studies/{study_id}/seeds", json={"seeds": [3]}, headers=who) for who in (bob, ann)]

        assert [answer.status_code for answer in answers] == [404, 202]


def test_job_that_would_be_refused_today_is_refused(tmp_path: Path) -> None:
    with api(tmp_path, allow_code=True) as (client, world):
        base = SPEC | {"model": {"class_path": "my_package.Net"}}
        study_id = submit(client, base=base, grid={"optimizer.lr": [0.1]}, claims=[])
    with api_of(world) as (client, _):
        answer = client.post(f"/v1/studies/{study_id}/seeds", json={"seeds": [3]})

        assert "model.class_path" in str(problem(answer, 422, "invalid_spec")["errors"]).replace("/", ".")


def test_seeds_leave_a_line_in_the_audit(running: Running) -> None:
    client, _ = running
    study_id = submit(client)

    add(client, study_id, 2)
    add(client, study_id, 2)

    lines = client.get("/v1/audit", params={"object": study_id}).json()["items"]
    assert [(line["action"], line["after"]) for line in lines] == [
        ("study.add_seeds", {"seeds": [2], "jobs": 2}),
        ("study.submit", {"name": "kinds", "jobs": 4}),
    ]
