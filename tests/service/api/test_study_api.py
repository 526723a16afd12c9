"""Studies as a client sees them, and what of them comes into MLflow."""

from __future__ import annotations

import hashlib
import io
import json
import signal
import subprocess
import sys
import textwrap
import zipfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from syncnorm.service.api.components import Components
from syncnorm.service.integrations.mlflow_runs import TrackingUnreachableError
from syncnorm.service.integrations.model_inspection import inspect
from syncnorm.service.store import JobQuery, Store
from syncnorm.service.store.database import Database
from syncnorm.service.studies.measures import Outcome
from syncnorm.service.studies.publisher import run_status
from tests.helpers.service.api import SPEC, api
from tests.helpers.service.world import World
from tests.service.api.test_api import problem

Running = tuple[TestClient, World]
STUDY: dict[str, Any] = {
    "name": "kinds",
    "base": SPEC | {"resources": {"workers": 1}},
    "grid": {"norm.kind": ["batch", "group"]},
    "seeds": [0, 1],
    "claims": [{"text": "t", "metric": "val/error", "less": {"norm.kind": "group"}, "than": {"norm.kind": "batch"}}],
}
MAX_STEPS = 60


def context(client: TestClient) -> Components:
    found: Components = client.app.state.context  # type: ignore[attr-defined]
    return found


def work(client: TestClient, world: World, study_id: str, until: str = "finished") -> dict[str, Any]:
    """Steps of the world until the study is in a state, with metrics written by every driver."""
    for _ in range(MAX_STEPS):
        world.step()
        for driver in world.cluster.drivers.values():
            _measure(context(client).settings.storage_root, driver.launch.job_id, driver.launch.spec.norm.kind)
        study: dict[str, Any] = client.get(f"/v1/studies/{study_id}").json()
        if study["state"] == until:
            return study
    pytest.fail(f"not {until}: {study['jobs']}")


def _measure(storage: str, job_id: str, kind: str) -> None:
    folder = Path(storage) / "jobs" / job_id / "attempts" / "1"
    folder.mkdir(parents=True, exist_ok=True)
    accuracy = 0.9 if kind == "group" else 0.5
    points = [{"key": "val/accuracy", "value": value, "step": step} for step, value in ((1, 0.1), (2, accuracy))]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points) + '{"key": "torn')


def submit(client: TestClient, **changes: Any) -> str:
    answer = client.post("/v1/studies", json=STUDY | changes)
    assert answer.status_code == 201, answer.text
    study_id: str = answer.json()["id"]
    return study_id


def test_submitted_study_is_there_with_all_its_jobs(running: Running) -> None:
    client, _ = running

    answer = client.post("/v1/studies", json=STUDY)

    assert answer.status_code == 201
    study = answer.json()
    assert answer.headers["location"] == f"/v1/studies/{study['id']}"
    assert (study["state"], study["jobs"]) == ("queued", {"queued": 4})
    assert len(client.get(f"/v1/jobs?label=study:{study['id']}").json()["items"]) == 4
    assert [one["id"] for one in client.get("/v1/studies").json()["items"]] == [study["id"]]


def test_same_key_gives_the_same_study(running: Running) -> None:
    client, world = running
    headers = {"Idempotency-Key": "k"}

    first = client.post("/v1/studies", json=STUDY, headers=headers)
    again = client.post("/v1/studies", json=STUDY, headers=headers)

    assert again.json() == first.json()
    assert again.headers["idempotency-replayed"] == "true"
    assert len(world.store.jobs.find(JobQuery())) == 4
    problem(client.post("/v1/studies", json=STUDY | {"seeds": [9]}, headers=headers), 422, "idempotency_key_reused")


def test_study_with_a_bad_value_names_it_and_stores_nothing(running: Running) -> None:
    client, world = running

    grid = {"norm.kind": ["batch", "bat"], "data.batch_size": [2]}

    answer = client.post("/v1/studies", json=STUDY | {"grid": grid, "claims": []})

    found = problem(answer, 422, "invalid_spec")["errors"]
    assert [one["pointer"] for one in found] == ["/grid/norm.kind/1"]
    assert world.store.studies.find(None, None, 10) == []


def test_study_that_never_fits_the_cluster_is_refused(running: Running) -> None:
    client, _ = running

    answer = client.post("/v1/studies", json=STUDY | {"grid": {"resources.workers": [1, 64]}, "claims": []})

    assert problem(answer, 422, "invalid_spec")["errors"][0]["pointer"] == "/grid/resources.workers/1"


def test_study_counts_against_the_limit_of_its_owner(tmp_path: Path) -> None:
    with api(tmp_path, max_queued=3) as (client, _):
        answer = client.post("/v1/studies", json=STUDY)

    problem(answer, 429, "too_many_jobs")


def test_study_of_somebody_else_is_not_there(tmp_path: Path) -> None:
    with api(tmp_path, auth=True) as (client, _):
        study_id = submit(client)
        body = {"owner": "eve", "scopes": ["read", "submit"]}
        eve = {"Authorization": f"Bearer {client.post('/v1/tokens', json=body).json()['token']}"}

        answers = [
            client.get(f"/v1/studies/{study_id}", headers=eve),
            client.get(f"/v1/studies/{study_id}/report", headers=eve),
            client.post(f"/v1/studies/{study_id}/cancel", headers=eve),
        ]

        assert client.get("/v1/studies", headers=eve).json()["items"] == []
    for answer in answers:
        problem(answer, 404, "not_found")


def test_finished_study_compares_its_children(running: Running) -> None:
    client, world = running

    study = work(client, world, submit(client))

    assert study["jobs"] == {"succeeded": 4}
    assert study["findings"][0]["verdict"] == "agrees"
    assert [row["metrics"]["val/error"]["mean"] for row in study["table"]] == [0.5, pytest.approx(0.1)]


def test_dry_run_shows_the_jobs_and_stores_nothing(running: Running) -> None:
    client, _ = running

    answer = client.post("/v1/studies", json=STUDY, params={"dry_run": True})
    wrong = client.post("/v1/studies", json=STUDY | {"seeds": []}, params={"dry_run": True})

    planned = answer.json()["jobs"]
    assert answer.status_code == 200
    assert [(job["number"], job["point"]["norm.kind"], job["seed"]) for job in planned] == [
        (1, "batch", 0),
        (2, "batch", 1),
        (3, "group", 0),
        (4, "group", 1),
    ]
    assert client.post("/v1/jobs", json=planned[2]["spec"], params={"dry_run": True}).json()["norm"]["kind"] == "group"
    assert client.get("/v1/studies").json()["items"] == []
    assert problem(wrong, 422, "invalid_spec")["detail"] == "The study has 1 problem."


def test_report_comes_as_page_picture_json_and_csv(running: Running) -> None:
    client, world = running
    study_id = submit(client)
    before = client.get(f"/v1/studies/{study_id}/report", params={"format": "png"})
    work(client, world, study_id)
    at = f"/v1/studies/{study_id}/report"

    page = client.get(at)
    picture = client.get(at, headers={"Accept": "image/png"}, params={"picture": "heat_map"})
    document = client.get(at, params={"format": "json"}).json()
    values = client.get(at, params={"format": "csv"})

    problem(before, 404, "not_measured")
    assert page.headers["content-type"].startswith("text/html")
    assert page.text.count("data:image/png;base64,") == 3
    assert "agrees: t." in page.text
    assert picture.content.startswith(b"\x89PNG")
    assert document["counts"] == {"succeeded": 4}
    assert values.headers["content-type"] == "text/csv; charset=utf-8"
    assert len(values.text.splitlines()) == 5


def test_study_is_paused_resumed_and_cancelled_as_one(running: Running) -> None:
    client, world = running
    study_id = submit(client, base=STUDY["base"] | {"labels": {"works": "999"}})
    work(client, world, study_id, "running")

    paused = client.post(f"/v1/studies/{study_id}/pause")
    at_rest = work(client, world, study_id, "paused")
    client.post(f"/v1/studies/{study_id}/resume")
    work(client, world, study_id, "running")
    client.post(f"/v1/studies/{study_id}/cancel")
    over = work(client, world, study_id)

    assert paused.status_code == 202
    assert at_rest["jobs"] == {"paused": 4}
    assert over["jobs"] == {"cancelled": 4}


def test_failed_children_are_shown_and_can_be_retried(running: Running) -> None:
    client, world = running
    study_id = submit(client, base=STUDY["base"] | {"labels": {"outcome": "user_error.succeeded"}})
    failed = work(client, world, study_id)

    client.post(f"/v1/studies/{study_id}/retry")
    after = work(client, world, study_id)

    assert failed["jobs"] == {"failed": 4}
    assert [row["failed"] for row in failed["table"]] == [2, 2]
    assert {child["reason"] for child in failed["children"]} == {"user_error"}
    assert after["jobs"] == {"succeeded": 4}


def test_deleted_child_is_remembered(running: Running) -> None:
    client, world = running
    study_id = submit(client)
    child = work(client, world, study_id)["children"][0]
    world.step()

    assert client.delete(f"/v1/jobs/{child['job_id']}").status_code == 204

    study = client.get(f"/v1/studies/{study_id}").json()
    assert study["state"] == "finished"
    assert study["jobs"] == {"deleted": 1, "succeeded": 3}


# MLflow


def test_children_are_put_under_the_run_of_the_study_with_the_report(running: Running) -> None:
    client, world = running
    study_id = submit(client)
    work(client, world, study_id)

    context(client).studies.tick()

    study = client.get(f"/v1/studies/{study_id}").json()
    run_id = study["mlflow"]["run_id"]
    assert world.study_runs.runs == {study_id: run_id}
    assert world.study_runs.parents == dict.fromkeys(world.tracker.runs.values(), run_id)
    assert world.study_runs.status[run_id] == "FINISHED"
    metrics = {"study/succeeded": 4.0, "study/failed": 0.0, "study/claims agrees": 1.0}
    assert world.study_runs.metrics[run_id] == metrics
    assert "agrees: t." in world.study_runs.notes[run_id]
    assert set(world.study_runs.files[run_id]) == {
        *("report.html", "report.json", "study.json", "values.csv"),
        *("comparison.png", "curves.png", "heat_map.png"),
    }


def test_report_outlives_an_outage_of_mlflow_and_gets_there_later(running: Running) -> None:
    client, world = running
    study_id = submit(client)
    work(client, world, study_id)
    world.study_runs.reachable = False

    with pytest.raises(TrackingUnreachableError):
        context(client).studies.tick()

    assert client.get(f"/v1/studies/{study_id}/report").status_code == 200
    assert world.study_runs.files == {}
    world.study_runs.reachable = True
    context(client).studies.tick()
    assert len(world.study_runs.files) == 1


def test_study_is_reported_again_only_when_something_changed(running: Running) -> None:
    client, world = running
    study_id = submit(client, base=STUDY["base"] | {"labels": {"outcome": "user_error.succeeded"}})
    work(client, world, study_id)
    context(client).studies.tick()
    run_id = world.study_runs.runs[study_id]
    first = world.study_runs.status[run_id]
    world.study_runs.files.clear()
    context(client).studies.tick()
    untouched = dict(world.study_runs.files)

    client.post(f"/v1/studies/{study_id}/retry")
    work(client, world, study_id)
    context(client).studies.tick()

    assert (first, untouched) == ("FAILED", {})
    assert world.study_runs.status[run_id] == "FINISHED"
    assert set(world.study_runs.files) == {run_id}


@pytest.mark.parametrize(
    ("states", "status"),
    [
        (("succeeded", "succeeded"), "FINISHED"),
        (("succeeded", "failed"), "FINISHED"),
        (("succeeded", "deleted"), "FINISHED"),
        (("succeeded", "failed", "cancelled"), "KILLED"),
        (("failed", "cancelled"), "FAILED"),
        (("cancelled", "deleted"), "KILLED"),
    ],
)
def test_run_of_a_study_is_finished_where_there_is_something_to_compare(states: tuple[str, ...], status: str) -> None:
    children = tuple(Outcome(i, f"j{i}", "job", {}, 0, state) for i, state in enumerate(states))

    assert run_status(children) == status


# Kill -9 while the children are created

_SUBMIT = textwrap.dedent(
    """
    import json, os, signal, sys
    import sqlalchemy as sa
    from syncnorm.service.store.database import Database
    from syncnorm.service.store import Store, StoredResponse
    from syncnorm.service.jobs.study_spec import expand, read_study
    from syncnorm.service.jobs.study import new_study

    url, document = sys.argv[1], json.loads(sys.argv[2])
    for last in range(1, 9):
        pid = os.fork()
        if pid == 0:
            database, seen = Database(url), 0
            store = Store(database)
            spec = read_study(document)
            study, children, jobs = new_study(spec, expand(spec), "ann", store.now())

            @sa.event.listens_for(sa.Engine, "after_cursor_execute")
            def die(*_):
                global seen
                seen += 1
                if seen == last:
                    os.kill(os.getpid(), signal.SIGKILL)

            store.studies.add(study, children, jobs, ("key", StoredResponse("hash", {"id": study.id})))
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    """
)


def test_service_killed_while_it_creates_children_neither_loses_nor_doubles_any(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'service.db'}"
    with closing(Database(url)) as database:
        database.migrate()

    # The same request again and again, killed after its 1st, 2nd, … statement, until one gets through.
    command = [sys.executable, "-c", _SUBMIT, url, json.dumps(STUDY)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)

    codes = [int(line) for line in done.stdout.split()]
    assert codes.count(-signal.SIGKILL) >= 6
    assert codes[-1] == 0
    with closing(Database(url)) as database:
        store = Store(database)
        (study,) = store.studies.find(None, None, 10)
        jobs = {one.id for one in store.jobs.find(JobQuery())}
        assert jobs == {child.job_id for child, job in store.studies.family(study.id) if job is not None}
        assert len(jobs) == 4


OWN = """
import torch
import lightning.pytorch as pl
from torch import nn

class Net(pl.LightningModule):
    def __init__(self, num_classes=10):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

class Brings(Net):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)
"""


@pytest.mark.parametrize(
    ("name", "axis", "override", "refused"),
    [
        pytest.param("Brings", "optimizer.lr", False, True, marks=pytest.mark.chaos),
        ("Brings", "data.batch_size,optimizer.lr", False, True),
        pytest.param("Brings", "schedule.warmup_steps", False, True, marks=pytest.mark.chaos),
        ("Brings", "optimizer.lr", True, False),
        pytest.param("Brings", "data.batch_size", False, False, marks=pytest.mark.chaos),
        ("Net", "optimizer.lr", False, False),
    ],
)
def test_grid_over_the_optimizer_of_a_module_that_brings_its_own_is_refused(
    name: str, axis: str, override: bool, refused: bool, tmp_path: Path
) -> None:
    with api(tmp_path, allow_code=True) as (client, world):
        parts = context(client)
        client.app.state.context = replace(parts, inspect=lambda spec: inspect(spec, parts.packages))  # type: ignore[attr-defined]
        with io.BytesIO() as archive:
            with zipfile.ZipFile(archive, "w") as package:
                package.writestr("net_of_a_study.py", OWN)
            digest = f"sha256:{hashlib.sha256(archive.getvalue()).hexdigest()}"
            parts.packages.put(digest, io.BytesIO(archive.getvalue()))
        base = SPEC | {"model": {"class_path": f"net_of_a_study.{name}"}, "code": {"package": digest}}
        if override:
            base |= {"optimizer": {"override": True}}
        values: list[Any] = {"data.batch_size": [32, 64], "optimizer.lr": [0.1, 0.2]}.get(axis, [1, 2])
        grid = {axis: [[32, 0.1], [64, 0.2]] if "," in axis else values}

        answer = client.post("/v1/studies", json={"name": "rates", "base": base, "grid": grid, "seeds": [0]})

        if not refused:
            assert answer.status_code == 201, answer.text
            return
        assert answer.status_code == 422, answer.text
        (error,) = answer.json()["errors"]
        assert error["pointer"] == f"/grid/{axis}"
        what = "schedule" if axis.startswith("schedule") else "optimizer"
        assert f"{what} must be left out, because Brings.configure_optimizers" in error["detail"]
        assert "optimizer.override: true" in error["detail"]
        assert world.store.jobs.find(JobQuery()) == []
