"""The composition at work: jobs from outside through the published ports, and what breaks on the way.

The tests run in the order of the file and share the containers; each leaves them running.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from syncnorm.service.cli.job_files.job_file import load
from syncnorm.service.client.client import Client
from tests.deploy.conftest import Started
from tests.helpers.deploy.composition import Composition, eventually, inspect
from tests.helpers.paths import EXAMPLES, ROOT

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(1500)]

DEMO = EXAMPLES / "digits-sync-batch.yaml"
COLD_START_S = 240
JOB_S = 600
FIND_RANKS = """
import pathlib
lines = [p.read_bytes() for p in pathlib.Path("/proc").glob("[0-9]*/cmdline")]
print(sum(line.startswith(b"ray::RayTrainWorker") for line in lines))
"""


def finished(client: Client, job_id: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        job = client.job(job_id)
        return job if job["state"] in ("succeeded", "failed", "cancelled") else None

    return eventually(look, JOB_S, lambda: str(client.job(job_id)))


def succeeded(client: Client, job_id: str) -> dict[str, Any]:
    """The job once it has succeeded. Fails with its last log lines."""
    job = finished(client, job_id)
    if job["state"] != "succeeded":
        lines = [f"{line['rank']} {line['text']}" for line in client.logs(job_id, tail=80)]
        pytest.fail("\n".join([f"{job['state']} {job['reason']}: {job['message']}", *lines]))
    return job


def training(client: Client, job_id: str, step: int = 1) -> dict[str, Any]:
    """The job once it has done this many steps."""

    def look() -> dict[str, Any] | None:
        job = client.job(job_id)
        assert job["state"] not in ("succeeded", "failed", "cancelled"), job
        return job if (job["progress"]["step"] or 0) >= step else None

    return eventually(look, JOB_S, lambda: str(client.job(job_id)))


def ranks(composition: Composition) -> dict[str, int]:
    """Training processes in each worker container."""
    found = {}
    for container in composition.workers():
        number = composition.run("docker", "exec", container, "python", "-S", "-c", FIND_RANKS)
        found[container] = int(number)
    return found


def long_spec(name: str, epochs: int = 40, **changes: Any) -> dict[str, Any]:
    spec = load(DEMO, [f"train.epochs={epochs}", "train.checkpoint_every.epochs=1", f"name={name}"])
    return spec | changes


@pytest.fixture(scope="module")
def demo(started: Started) -> dict[str, Any]:
    """The demo job, finished, with the ranks seen while it trained and the seconds since `up`."""
    job = started.client.submit(load(DEMO, []))
    training(started.client, job["id"])
    seen = ranks(started.composition)
    job = succeeded(started.client, job["id"])
    return {"job": job, "ranks": seen, "seconds": time.monotonic() - started.started_at}


def test_demo_job_succeeds_from_outside(demo: dict[str, Any]) -> None:
    assert demo["job"]["progress"]["metrics"]["val/accuracy"] > 0.9


def test_ranks_of_the_demo_run_in_two_containers(demo: dict[str, Any]) -> None:
    assert list(demo["ranks"].values()) == [1, 1]


def test_cold_start_to_finished_demo_job_takes_at_most_four_minutes(demo: dict[str, Any]) -> None:
    print(f"cold start to finished job: {demo['seconds']:.0f} s")

    assert demo["seconds"] <= COLD_START_S


def test_run_and_model_of_the_demo_are_in_postgresql(composition: Composition, demo: dict[str, Any]) -> None:
    run_id = demo["job"]["mlflow"]["run_id"]
    model_id = demo["job"]["model"]["uri"].rsplit("/", 1)[-1]

    assert composition.sql("mlflow", f"SELECT status FROM runs WHERE run_uuid = '{run_id}'") == ["FINISHED"]
    experiment = composition.sql("mlflow", f"SELECT experiment_id FROM runs WHERE run_uuid = '{run_id}'")
    assert (
        composition.sql("mlflow", f"SELECT experiment_id FROM logged_models WHERE model_id = '{model_id}'")
        == experiment
    )
    assert composition.sql("syncnorm", "SELECT state FROM jobs") == ["succeeded"]


def test_doctor_finds_nothing_wrong(composition: Composition, demo: dict[str, Any]) -> None:
    report = composition.execute("api", "syncnorm", "doctor")

    assert "wrong" not in report
    assert "all-reduce over 2 workers" in report


def test_doctor_names_a_stopped_mlflow(composition: Composition, demo: dict[str, Any]) -> None:
    composition.compose("stop", "mlflow")
    try:
        report = composition.execute("api", "syncnorm", "doctor", check=False)
    finally:
        composition.compose("start", "mlflow")

    assert "wrong  mlflow" in report


def test_job_goes_on_while_the_api_is_killed(composition: Composition, client: Client) -> None:
    job = client.submit(long_spec("api-killed"))
    training(client, job["id"], step=30)
    container = composition.containers("api")[0]

    composition.run("docker", "exec", container, "sh", "-c", "kill -9 $(cat /proc/1/task/1/children)")

    eventually(lambda: inspect(container)["RestartCount"] >= 1, 60)
    composition.wait_until_ready()
    seen = client.job(job["id"])
    assert seen["state"] in ("running", "finalizing"), seen
    done = succeeded(client, job["id"])
    assert done["attempts"] == 1


def test_worker_of_another_host_joins(composition: Composition, demo: dict[str, Any]) -> None:
    composition.join()

    def look() -> str | None:
        report = composition.execute("api", "syncnorm", "doctor", check=False)
        return report if "3 workers" in report else None

    report = eventually(look, 240)
    assert "wrong" not in report
    assert "all-reduce over 3 workers" in report


def test_job_resumes_from_its_checkpoint_when_a_worker_container_stops(
    composition: Composition, client: Client
) -> None:
    job = client.submit(long_spec("worker-stopped", epochs=1000))
    training(client, job["id"], step=100)
    victim = next(container for container, number in ranks(composition).items() if number)

    composition.run("docker", "stop", "--time", "1", victim)

    try:
        eventually(lambda: resumptions(client, job["id"]), JOB_S, lambda: str(client.job(job["id"])))
        reached = client.job(job["id"])["progress"]["step"]
        training(client, job["id"], step=reached + 100)
    finally:
        client.cancel(job["id"])
        composition.run("docker", "start", victim)
        composition.leave()
        composition.wait_for_workers()


def resumptions(client: Client, job_id: str) -> list[str]:
    """Where training went on from: checkpoints of later attempts, or of workers started again within one."""
    later = [attempt["resume_from"] for attempt in client.attempts(job_id)[1:] if attempt["resume_from"]]
    return later + [event["message"] for event in client.events(job_id) if event["kind"] == "resumed"]


def test_upgrade_while_a_job_trains_leaves_it_running(composition: Composition, client: Client) -> None:
    job = client.submit(long_spec("upgraded"))
    training(client, job["id"], step=30)

    composition.compose("run", "--rm", "migrate")
    composition.compose("up", "-d", "--no-deps", "--force-recreate", "api")

    composition.wait_until_ready()
    done = succeeded(client, job["id"])
    assert done["attempts"] == 1


def test_tables_of_the_first_migration_become_todays(composition: Composition, demo: dict[str, Any]) -> None:
    code = """
import sqlalchemy as sa
from alembic import command
from alembic.script import ScriptDirectory
from syncnorm.service.store import database as d
url = "postgresql://syncnorm@postgres/old?passfile=/run/secrets/syncnorm_pgpass"
old = d.Database(url)
config = d._alembic()
first = ScriptDirectory.from_config(config).get_base()
with old._writer.connect() as connection:
    config.attributes["connection"] = connection
    command.upgrade(config, first)
    connection.commit()
with old.write() as connection:
    connection.execute(sa.text("INSERT INTO leases VALUES ('x', 'y', 7, '2026-01-31')"))
old.migrate()
with old.read() as connection:
    token = connection.execute(sa.text("SELECT token FROM leases")).scalar_one()
print(first, *old.revisions(), token)
"""
    composition.sql("postgres", "CREATE DATABASE old OWNER syncnorm")

    first, revision, head, token = composition.execute("api", "python", "-c", code).split()

    assert first == "0001"
    assert revision == head
    assert token == "7"


def test_down_and_up_keep_everything(composition: Composition, client: Client, demo: dict[str, Any]) -> None:
    before = content(composition, client)

    composition.compose("down", "--timeout", "20")
    composition.up()
    composition.wait_until_ready()

    assert content(composition, client) == before


def test_backup_restores_into_empty_volumes(
    composition: Composition, client: Client, demo: dict[str, Any], tmp_path: Path
) -> None:
    before = content(composition, client)

    composition.run(str(ROOT / "deploy" / "backup"), str(tmp_path))
    composition.compose("down", "--volumes", "--timeout", "20")
    composition.run(str(ROOT / "deploy" / "restore"), str(tmp_path), timeout_s=600)
    composition.wait_until_ready()

    assert content(composition, client) == before


def content(composition: Composition, client: Client) -> dict[str, Any]:
    """All jobs, and of the first one the run, its model and a file of it."""
    jobs = list(client.jobs())
    demo = client.job(jobs[-1]["id"])
    with composition.mlflow() as mlflow:
        run = mlflow.get("/api/2.0/mlflow/runs/get", params={"run_id": demo["mlflow"]["run_id"]}).json()["run"]
        place = f"/api/2.0/mlflow-artifacts/artifacts/{run['info']['experiment_id']}/{run['info']['run_id']}/artifacts"
        certificate = mlflow.get(f"{place}/export/certificate.json").json()
    assert certificate == demo["model"]["certificate"]
    return {
        "jobs": {job["id"]: (job["state"], job["model"], job["attempts"]) for job in jobs},
        "metrics": sorted((metric["key"], metric["value"]) for metric in run["data"]["metrics"]),
        "certificate": certificate,
        "storage": composition.execute("api", "sh", "-c", "cd /storage && find jobs -name result.json | sort"),
    }
