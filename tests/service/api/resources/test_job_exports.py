"""A job succeeds once its weights are published; how its export went is said wherever the job is shown."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from syncnorm.service.cli.progress import summary
from syncnorm.service.jobs.job import JobState
from syncnorm.service.store import schema as t
from syncnorm.trainer.contract.protocol import CheckpointFact
from tests.helpers.service.api import api
from tests.helpers.service.world import World
from tests.service.api.test_api import Running, problem
from tests.service.reconciler.test_later_exports import finish

BRANCHES = "It branches on values."
KEEP_BEST = {"keep_best": {"monitor": "val/loss"}}


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    with api(tmp_path) as pair:
        yield pair


def view(running: Running, job_id: str) -> Any:
    return running[0].get(f"/v1/jobs/{job_id}").json()


@pytest.mark.parametrize("state", ["failed", "skipped"])
def test_job_without_a_certified_model_succeeds_and_says_why(running: Running, state: str) -> None:
    client, world = running
    job = world.succeed(labels={"export": state})

    shown = view(running, job.id)
    (listed,) = client.get("/v1/jobs").json()["items"]
    (own,) = client.get(f"/v1/jobs/{job.id}/exports").json()["items"]
    explained = client.get(f"/v1/jobs/{job.id}/explain").json()
    events = client.get(f"/v1/jobs/{job.id}/events", params={"limit": 1000}).json()["items"]

    export = {"state": state, "reason": "not_exportable", "message": BRANCHES, "name": "1"}
    assert (shown["state"], shown["model"], shown["export"], shown["reason"]) == ("succeeded", None, export, None)
    assert listed["export"] == export
    assert (own["name"], own["state"], own["reason"], own["message"]) == ("1", state, "not_exportable", BRANCHES)
    assert BRANCHES in explained["message"]
    (event,) = [one for one in events if one["kind"] == "succeeded"]
    assert (BRANCHES in event["message"], event["data"]["export"]) == (True, state)
    assert f"| export | {state}: {BRANCHES} |" in world.tracker.notes[shown["mlflow"]["run_id"]]
    assert world.tracker.status[shown["mlflow"]["run_id"]] == "FINISHED"


def test_certified_export_is_said_and_leaves_no_message(running: Running) -> None:
    _, world = running
    job = world.succeed(labels={"export": "certified"})

    shown = view(running, job.id)

    assert shown["export"] == {"state": "certified", "reason": None, "message": "", "name": "1"}
    assert (shown["model"]["uri"], shown["message"]) == ("models:/m-own", "")


def test_export_runs_while_the_job_finalizes_and_is_not_there_before(running: Running) -> None:
    _, world = running
    job, found = world.submit(labels={"works": "3"}), {}
    while not world.job(job.id).is_terminal:
        found[world.job(job.id).state] = view(running, job.id)["export"]
        world.step()

    assert found[JobState.FINALIZING]["state"] == "running"
    assert found[JobState.RUNNING] is found[JobState.QUEUED] is None


def test_required_export_that_fails_fails_the_job(running: Running) -> None:
    _, world = running
    job = world.succeed(labels={"outcome": "export_mismatch"})

    shown = view(running, job.id)

    assert (shown["state"], shown["export"]["state"], shown["export"]["reason"]) == (
        "failed",
        "failed",
        "export_mismatch",
    )


def test_job_of_a_version_that_recorded_no_export_has_a_certified_one(running: Running) -> None:
    _, world = running
    job = world.succeed(labels={"export": "certified"})
    with world.database.write() as c:
        c.execute(sa.update(t.jobs).values(export=None))

    assert view(running, job.id)["export"]["state"] == "certified"


def test_damaged_record_of_an_export_hides_nothing_else(running: Running) -> None:
    client, world = running
    job = world.succeed(labels={"export": "failed"})
    with world.database.write() as c:
        c.execute(sa.update(t.jobs).values(export={"state": ["?"]}))

    assert (view(running, job.id)["state"], view(running, job.id)["export"]) == ("succeeded", None)
    assert client.get("/v1/jobs").json()["items"][0]["export"] is None
    assert client.get(f"/v1/jobs/{job.id}/exports").json()["items"] == []


def test_later_export_stands_in_for_one_that_failed(running: Running) -> None:
    client, world = running
    job = world.succeed(labels={"export": "failed", "export_works": "3"})

    client.post(f"/v1/jobs/{job.id}/exports", json={"fold": False})
    while_it_runs = view(running, job.id)["export"]
    finish(world, job.id)

    after = view(running, job.id)
    own, later = client.get(f"/v1/jobs/{job.id}/exports").json()["items"]
    assert (while_it_runs["state"], while_it_runs["name"]) == ("running", "2")
    assert (after["export"]["state"], after["export"]["name"]) == ("certified", "2")
    assert after["model"]["uri"] == later["uri"] == "models:/m-1"
    assert (own["state"], own["message"], own["uri"]) == ("failed", BRANCHES, None)
    assert after["version"] > job.version


def test_later_export_that_fails_leaves_its_own_reason(running: Running) -> None:
    client, world = running
    job = world.succeed(labels={"export": "skipped", "exports": "user_error"})

    client.post(f"/v1/jobs/{job.id}/exports", json={})
    finish(world, job.id)

    after = view(running, job.id)
    assert after["state"] == "succeeded"
    assert after["export"] == {"state": "failed", "reason": "user_error", "message": "It raised.", "name": "2"}


def test_later_export_of_a_certified_job_changes_nothing_of_it(running: Running) -> None:
    client, world = running
    job = world.succeed(labels={"export": "certified", "exports": "user_error"})

    client.post(f"/v1/jobs/{job.id}/exports", json={})
    finish(world, job.id)

    assert view(running, job.id)["export"]["state"] == "certified"
    assert world.job(job.id).version == job.version


def test_export_that_is_given_up_does_not_run_for_ever(running: Running) -> None:
    client, world = running
    job = world.succeed(labels={"export": "failed"})
    client.post(f"/v1/jobs/{job.id}/exports", json={})

    world.store.set_aside.export(job.id, 2, "Nobody can read it.")

    assert view(running, job.id)["export"]["state"] == "failed"
    assert view(running, job.id)["export"]["message"] == "Nobody can read it."


@pytest.mark.parametrize(
    ("checkpoint", "train", "sentence"),
    [
        ("best", {}, "best needs train.keep_best"),
        (7, KEEP_BEST, "the job has no checkpoint of step 7; it has one of 5"),
        ("newest", KEEP_BEST, "got 'newest'"),
    ],
)
def test_checkpoint_that_is_not_there_is_refused(running: Running, checkpoint: Any, train: Any, sentence: str) -> None:
    client, world = running
    job = world.succeed(train=train)
    add_checkpoint(world, job.id, 5)

    refused = problem(client.post(f"/v1/jobs/{job.id}/exports", json={"checkpoint": checkpoint}), 422, "invalid_spec")

    assert sentence in str(refused["errors"])


@pytest.mark.parametrize("checkpoint", ["best", "last", 5])
def test_checkpoint_that_is_there_is_taken(running: Running, checkpoint: Any) -> None:
    client, world = running
    job = world.succeed(train=KEEP_BEST)
    add_checkpoint(world, job.id, 5)

    made = client.post(f"/v1/jobs/{job.id}/exports", json={"checkpoint": checkpoint, "module": "net"})

    assert made.status_code == 201
    assert (made.json()["export"]["checkpoint"], made.json()["export"]["module"]) == (checkpoint, "net")


def test_checkpoint_that_is_not_named_is_that_of_the_job(running: Running) -> None:
    client, world = running
    job = world.succeed(train=KEEP_BEST, export={"checkpoint": "best"})

    made = client.post(f"/v1/jobs/{job.id}/exports", json={"formats": ["onnx"]}).json()
    last = client.post(f"/v1/jobs/{job.id}/exports", json={"checkpoint": "last"}).json()

    assert (made["export"]["checkpoint"], last["export"]["checkpoint"]) == ("best", "last")


def add_checkpoint(world: World, job_id: str, step: int) -> None:
    with world.database.write() as c:
        c.execute(sa.update(t.attempts).values(ended_at=None, released_at=None))
    (attempt,) = world.store.attempts.of_job(job_id)
    fact = CheckpointFact(fence=attempt.fence, path="p", step=step, epoch=0, digest="d", size_bytes=1)
    world.store.reports.add_checkpoint(attempt.id, fact)


def test_job_on_the_terminal_names_its_export(running: Running) -> None:
    from rich.console import Console

    _, world = running
    job = world.succeed(labels={"export": "skipped"})
    console = Console(width=200)

    with console.capture() as said:
        console.print(summary(view(running, job.id)))

    assert f"Export       skipped: {BRANCHES}" in said.get()
