"""What a job may start from: checked before the queue, found when an attempt is launched."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient

from syncnorm.service.jobs.job import Job
from syncnorm.service.store import schema as t
from syncnorm.trainer.contract.protocol import Launch
from tests.helpers.service.api import SPEC, api
from tests.helpers.service.world import World

Running = tuple[TestClient, World]
KEEP_BEST = {"epochs": 1, "keep_best": {"monitor": "val/loss"}}


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    with api(tmp_path, auth=True, allow_code=False) as found:
        yield found


@pytest.fixture
def source(running: Running) -> Job:
    """A job of ann with checkpoints of steps 5 and 7."""
    _, world = running
    return with_checkpoints(world, world.succeed(name="base", train=KEEP_BEST))


def with_checkpoints(world: World, job: Job, *steps: int) -> Job:
    with world.database.write() as c:
        c.execute(sa.delete(t.checkpoints).where(t.checkpoints.c.job_id == job.id))
        rows = [
            {"job_id": job.id, "attempt": 1, "step": step, "epoch": 0, "path": f"p{step}", "digest": f"d{step}"}
            | {"size_bytes": 1, "at": world.clock()}
            for step in steps or (5, 7)
        ]
        c.execute(sa.insert(t.checkpoints), rows)
    return job


def token_of(client: TestClient, owner: str) -> dict[str, str]:
    made = client.post("/v1/tokens", json={"owner": owner, "scopes": ["read", "submit"]}).json()
    return {"Authorization": f"Bearer {made['token']}"}


def starting_from(**how: Any) -> dict[str, Any]:
    return SPEC | {"model": {"name": "resnet", "init_from": how}}


def refusal(client: TestClient, how: dict[str, Any], owner: str = "ann", path: str = "/v1/jobs") -> tuple[str, str]:
    """Field and text of the one problem."""
    answer = client.post(path, json=starting_from(**how), headers=token_of(client, owner))
    assert answer.status_code == 422, answer.text
    (problem,) = answer.json()["errors"]
    return problem["pointer"], problem["detail"]


@pytest.mark.parametrize("checkpoint", [None, "last", "best", 5])
@pytest.mark.parametrize("by", ["id", "name"])
def test_a_job_of_yours_is_named_by_id_or_name_and_kept_by_id(
    by: str, checkpoint: Any, running: Running, source: Job
) -> None:
    client, _ = running
    body = starting_from(job=getattr(source, by), checkpoint=checkpoint)

    made = client.post("/v1/jobs", json=body, headers=token_of(client, "ann"))

    assert made.status_code == 201, made.text
    assert made.json()["spec"]["model"]["init_from"]["job"] == source.id


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/jobs?dry_run=true"])
def test_jobs_of_others_and_jobs_that_do_not_exist_get_the_same_answer(
    path: str, running: Running, source: Job
) -> None:
    client, _ = running
    answers = [refusal(client, {"job": job}, "bob", path) for job in (source.id, source.name, "job_" + "0" * 26)]

    assert {pointer for pointer, _ in answers} == {"/model/init_from/job"}
    assert all("must be a job of yours, by id or name; you have no job" in text for _, text in answers)


def test_an_admin_may_start_from_any_job(running: Running, source: Job) -> None:
    client, _ = running

    assert client.post("/v1/jobs", json=starting_from(job=source.id)).status_code == 201


@pytest.mark.parametrize(
    ("how", "pointer", "said"),
    [
        ({"checkpoint": 6}, "/model/init_from/checkpoint", "has no checkpoint of step 6; it has one of 5, 7"),
        ({"checkpoint": "newest"}, "/model/init_from/checkpoint", ""),
    ],
)
def test_a_checkpoint_that_is_not_there_is_refused(
    how: dict[str, Any], pointer: str, said: str, running: Running, source: Job
) -> None:
    client, _ = running
    answer = client.post("/v1/jobs", json=starting_from(job=source.id, **how), headers=token_of(client, "ann")).json()

    assert all(one["pointer"].startswith(pointer) and said in one["detail"] for one in answer["errors"])


def test_best_needs_a_job_that_kept_it_and_a_name_must_be_unique(running: Running) -> None:
    client, world = running
    jobs = [with_checkpoints(world, world.succeed(name="twice")) for _ in range(2)]

    assert "best needs train.keep_best" in refusal(client, {"job": jobs[0].id, "checkpoint": "best"})[1]
    assert "several are called twice; give an id: job_" in refusal(client, {"job": "twice"})[1]


def test_of_several_jobs_with_a_name_the_one_with_checkpoints_is_meant(running: Running) -> None:
    client, world = running
    trained = with_checkpoints(world, world.succeed(name="tried-often"))
    latest = [world.submit(name="tried-often") for _ in range(2)][-1]
    never = [world.submit(name="never") for _ in range(2)][-1]

    answer = client.post("/v1/jobs", json=starting_from(job="tried-often"))

    assert answer.json()["spec"]["model"]["init_from"]["job"] == trained.id != latest.id
    assert refusal(client, {"job": "never"})[1] == f"must have a checkpoint; job {never.id} is queued and has none"


def test_a_job_without_a_checkpoint_is_refused(running: Running) -> None:
    client, world = running
    job = world.submit()

    assert refusal(client, {"job": job.id})[1] == f"must have a checkpoint; job {job.id} is queued and has none"


def test_each_job_of_a_study_is_checked_and_keeps_the_id(running: Running, source: Job) -> None:
    client, world = running
    study = {"name": "s", "base": starting_from(job="base"), "grid": {"norm.kind": ["batch", "group"]}, "seeds": [0]}

    made = client.post("/v1/studies", json=study, headers=token_of(client, "ann"))
    refused = client.post("/v1/studies", json=study, headers=token_of(client, "bob"))

    assert made.status_code == 201, made.text
    ids = [child["job_id"] for child in client.get(f"/v1/studies/{made.json()['id']}").json()["children"]]
    assert {world.job(one).spec.document["model"]["init_from"]["job"] for one in ids} == {source.id}
    assert refused.json()["errors"][0]["pointer"] == "/base/model/init_from/job"


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("http://169.254.169.254/latest/meta-data", "must begin with one of s3://"),
        ("file:///etc/passwd", "must begin with one of s3://"),
        ("s3://bucket/../w", "must not contain '..'"),
        ("{home}/storage/jobs/j/attempts/1/export/weights.safetensors", "must lie outside the service's own folders"),
        ("{home}-link", "must lie outside the service's own folders"),
        ("{home}/../{name}/admin.token", "must lie outside the service's own folders"),
        ("/nowhere/w", "must be a file that exists, or a URL"),
        ("x" * 2000, "must be a path that can be looked up (File name too long)"),
        ("{home}/loop/w", "must be a path that can be looked up (Symlink loop"),
        ("~no-such-user/w", "must be a path that can be looked up (Could not determine home directory"),
    ],
)
def test_files_reach_nothing_that_jobs_may_not_read(file: str, said: str, running: Running, tmp_path: Path) -> None:
    client, world = running
    (tmp_path.parent / f"{tmp_path.name}-link").symlink_to(world.folder / "service.db")
    (world.folder / "loop").symlink_to(world.folder / "loop")
    named = file.format(home=world.folder, name=world.folder.name)

    pointer, text = refusal(client, {"file": named})

    assert pointer == "/model/init_from/file"
    assert said in text


def test_where_code_is_allowed_files_are_open(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(b"")
    with api(tmp_path, allow_code=True) as (client, _):
        for file in (str(tmp_path / "w"), "https://example.org/w.pt"):
            assert client.post("/v1/jobs", json=starting_from(file=file)).status_code == 201


def test_models_are_looked_up(running: Running, source: Job) -> None:
    client, world = running
    world.tracker.models = {"models:/shared/3": {}, "models:/m-1": {"syncnorm.job_id": source.id}, "models:/m-2": {}}
    submitted = {
        (uri, owner): client.post(
            "/v1/jobs", json=starting_from(model=uri), headers=token_of(client, owner)
        ).status_code
        for uri in ("models:/shared/3", "models:/m-1", "models:/m-2")
        for owner in ("ann", "bob")
    }

    assert submitted == {
        ("models:/shared/3", "ann"): 201,
        ("models:/shared/3", "bob"): 201,
        ("models:/m-1", "ann"): 201,
        ("models:/m-1", "bob"): 422,
        ("models:/m-2", "ann"): 422,
        ("models:/m-2", "bob"): 422,
    }
    assert refusal(client, {"model": "models:/shared/4"})[1] == "must be a model of MLflow; it has no models:/shared/4"


def test_the_launch_names_the_checkpoints_that_there_are_then(running: Running, source: Job) -> None:
    client, world = running
    made = client.post("/v1/jobs", json=starting_from(job="base"), headers=token_of(client, "ann")).json()
    with_checkpoints(world, source, 7, 9)

    world.step()

    launch = Launch.model_validate_json((world.folder / f"jobs/{made['id']}/attempts/1/launch.json").read_text())
    assert [(one.step, one.path, one.digest) for one in launch.weights.checkpoints] == [
        (9, "p9", "d9"),
        (7, "p7", "d7"),
    ]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({}, "exactly one of job, model and file, got none"),
        ({"job": "a", "file": "b"}, "exactly one of job, model and file, got job, file"),
        ({"file": "b", "checkpoint": "last"}, "checkpoint is for init_from.job"),
        ({"job": "a", "rename": {"x.*": "y"}}, "rename must keep each star"),
        ({"model": "runs:/x"}, ""),
    ],
)
def test_a_spec_that_says_no_source_or_two_is_refused(how: dict[str, Any], said: str, running: Running) -> None:
    pointer, text = refusal(running[0], how)

    assert pointer.startswith("/model/init_from")
    assert said in text


def test_a_source_stays_until_the_jobs_that_wait_for_it_have_started(running: Running, source: Job) -> None:
    client, world = running
    waiting, other = (
        client.post("/v1/jobs", json=document).json()["id"] for document in (starting_from(job=source.id), SPEC)
    )

    refused = client.delete(f"/v1/jobs/{source.id}")
    while client.get(f"/v1/jobs/{waiting}").json()["state"] in ("queued", "starting"):
        world.step()
    deleted = client.delete(f"/v1/jobs/{source.id}")

    assert refused.status_code == 409
    assert f"can't be deleted yet, because {waiting} will start from its weights" in refused.json()["detail"]
    assert other not in refused.json()["detail"]
    assert deleted.status_code == 204
