"""Rows of another version: what can't be read is set aside and said, and hurts nobody."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import sqlalchemy as sa

from syncnorm.service.store import schema
from syncnorm.service.store.database import Database
from tests.helpers.service.databases import fresh_sqlite
from tests.service.poison.conftest import NewScene
from tests.service.poison.documents import STUDY
from tests.service.poison.groups import Faults, culprits, must_be_none, share_of
from tests.service.poison.messages import PROFILE
from tests.service.poison.rows import Damage, of_table
from tests.service.poison.scene import TERMINAL, VICTIM, Scene, empty

STRIKES = 8
"""Ticks after which what fails again and again is set aside."""
Prepare = Callable[[Scene, int], list[str]]
"""So many jobs in the state that is wanted."""


def submit(scene: Scene, count: int, **spec: object) -> list[str]:
    content = json.dumps({**VICTIM, "labels": {"works": "999"}, **spec}).encode()
    return [name for _ in range(count) if (name := scene.submit(content)) is not None]


def queued(scene: Scene, count: int) -> list[str]:
    return submit(scene, count)


def running(scene: Scene, count: int) -> list[str]:
    jobs = submit(scene, count)
    scene.step(3)
    for job_id in jobs:
        fence = scene.world.store.attempts.of_job(job_id)[0].fence
        line = {"rank": 0, "seq": 1, "at": "2026-01-01T00:00:00Z", "level": "INFO", "text": "hello"}
        checkpoint = {"path": "/c", "step": 1, "epoch": 0, "digest": "0", "size_bytes": 1}
        progress = {"epoch": 0, "epochs": 1, "step": 1, "steps": 100, "metrics": {"train/loss": 1.0}}
        stacks = {"rank": 0, "request": 1, "threads": [{"name": "MainThread", "stack": "  here"}]}
        profile = {"rank": 0, "request": 1, "answer": PROFILE}
        messages = {"logs": {"lines": [line]}, "checkpoints": checkpoint, "progress": progress, "stacks": stacks}
        messages |= {"profile": profile}
        for kind, message in messages.items():
            scene.tell(f"{job_id}-1", fence, kind, json.dumps({"fence": fence, **message}).encode())
    return jobs


def paused(scene: Scene, count: int) -> list[str]:
    jobs = submit(scene, count)
    for job_id in jobs:
        scene.call("POST", f"/v1/jobs/{job_id}/pause")
    scene.step(1)
    return jobs


def succeeded(scene: Scene, count: int) -> list[str]:
    """Each with a later export that waits."""
    jobs = submit(scene, count, labels={})
    scene.step_until(lambda: all(scene.state(job_id) == "succeeded" for job_id in jobs))
    for job_id in jobs:
        scene.post(f"/v1/jobs/{job_id}/exports", b'{"formats": ["onnx"]}')
    return jobs


def live_through(scene: Scene, database: Database, damages: Sequence[Damage], prepare: Prepare) -> list[str]:
    """Each row belongs to a job of its own."""
    jobs = prepare(scene, len(damages))
    keys = {job_id: {_key(one): _row(one, job_id)} for job_id, one in zip(jobs, damages, strict=True)}
    done = [one.apply(database, keys[job_id]) for job_id, one in zip(jobs, damages, strict=True)]
    damaged = [job_id for job_id, applied in zip(jobs, done, strict=True) if applied]
    scene.step(STRIKES)
    scene.look_everywhere([])
    scene.look_everywhere(damaged)
    scene.check_victim()
    scene.call("GET", "/readyz")
    for job_id in jobs:
        scene.client.post(f"/v1/jobs/{job_id}/cancel")
    scene.step(STRIKES)
    scene.check_victim()
    check_given_back(scene, damaged)
    return scene.faults


def check_given_back(scene: Scene, jobs: Sequence[str]) -> None:
    """After a cancel the job has ended, nothing of it holds capacity, and it can be deleted."""
    for job_id in jobs:
        if (state := scene.state(job_id)) not in TERMINAL:
            scene.faults.append(f"the damaged job is {state} after a cancel")
        elif not scene.step_until(lambda job_id=job_id: _is_deleted(scene, job_id), 2 * STRIKES):  # type: ignore[misc]
            answer = scene.client.delete(f"/v1/jobs/{job_id}")
            scene.faults.append(f"the damaged job can't be deleted: {answer.json().get('detail')}")


def _is_deleted(scene: Scene, job_id: str) -> bool:
    return scene.client.delete(f"/v1/jobs/{job_id}").status_code in (204, 404)


def _key(damage: Damage) -> str:
    return "id" if damage.table == "jobs" else "job_id"


def _row(_damage: Damage, job_id: str) -> str:
    return job_id


def faults_of(new_scene: NewScene, database: Database, damages: Sequence[Damage], prepare: Prepare) -> Faults:
    def check(group: Sequence[Damage]) -> list[str]:
        with new_scene() as scene:
            return live_through(scene, database, group, prepare)

    return culprits(damages, check)


PREPARED = [queued, running, paused, succeeded]
OF_A_JOB = [
    ("attempts", running),
    ("events", running),
    ("log_lines", running),
    ("checkpoints", running),
    ("stacks", running),
    ("profiles", running),
    ("labels", queued),
    ("exports", succeeded),
]
OF_THE_SERVICE = [
    *("tokens", "usage", "idempotency", "webhooks", "secrets", "audit", "removals", "leases", "descriptions"),
    "storages",
]
_SHARE = 48


@pytest.mark.parametrize("prepare", PREPARED)
def test_damaged_row_of_a_job_hurts_nobody(new_scene: NewScene, database: Database, prepare: Prepare) -> None:
    must_be_none(faults_of(new_scene, database, share_of(of_table("jobs"), database, _SHARE), prepare))


@pytest.mark.chaos
@pytest.mark.parametrize("prepare", PREPARED)
def test_damaged_row_of_a_job_hurts_nobody_long(new_scene: NewScene, database: Database, prepare: Prepare) -> None:
    must_be_none(faults_of(new_scene, database, of_table("jobs"), prepare))


@pytest.mark.parametrize(("table", "prepare"), OF_A_JOB)
def test_damaged_row_of_what_belongs_to_a_job_hurts_nobody(
    new_scene: NewScene, database: Database, table: str, prepare: Prepare
) -> None:
    must_be_none(faults_of(new_scene, database, share_of(of_table(table), database, _SHARE // 2), prepare))


@pytest.mark.chaos
@pytest.mark.parametrize(("table", "prepare"), OF_A_JOB)
def test_damaged_row_of_what_belongs_to_a_job_hurts_nobody_long(
    new_scene: NewScene, database: Database, table: str, prepare: Prepare
) -> None:
    must_be_none(faults_of(new_scene, database, of_table(table), prepare))


def study_faults(new_scene: NewScene, database: Database, table: str, damages: Sequence[Damage]) -> Faults:
    """Studies of others are shown and reported."""

    def check(group: Sequence[Damage]) -> list[str]:
        with new_scene() as scene:
            base = {**STUDY, "base": {**STUDY["base"], "labels": {}}}
            theirs = [str(scene.submit(json.dumps(base).encode(), to="/v1/studies")) for _ in group]
            for study_id, damage in zip(theirs, group, strict=True):
                damage.apply(database, {"id" if table == "studies" else "study_id": study_id})
            victim = scene.submit(json.dumps(base).encode(), "bob", "/v1/studies")
            scene.step(STRIKES)
            scene.look_everywhere([], [*theirs, str(victim)])
            if scene.call("GET", f"/v1/studies/{victim}").json().get("reported_at") is None:
                scene.faults.append("the study of somebody else is not reported")
            scene.check_victim()
            return scene.faults

    return culprits(damages, check)


@pytest.mark.parametrize("table", ["studies", "study_children"])
def test_damaged_row_of_a_study_hurts_nobody(new_scene: NewScene, database: Database, table: str) -> None:
    must_be_none(study_faults(new_scene, database, table, share_of(of_table(table), database, _SHARE)))


@pytest.mark.chaos
@pytest.mark.parametrize("table", ["studies", "study_children"])
def test_damaged_row_of_a_study_hurts_nobody_long(new_scene: NewScene, database: Database, table: str) -> None:
    must_be_none(study_faults(new_scene, database, table, of_table(table)))


def service_faults(new_scene: NewScene, database: Database, table: str, damages: Sequence[Damage]) -> Faults:
    """One after the other in scenes of their own, for most of these have one row."""

    def check(damage: Damage) -> list[str]:
        with new_scene() as scene:
            fill(scene)
            if damage.apply(database, {"owner": "eve"} if table == "tokens" else {}):
                scene.step(STRIKES)
                scene.look_everywhere([])
                scene.call("GET", "/v1/secrets", "ann")
                scene.call("GET", "/v1/audit")
                scene.check_victim()
                scene.call("GET", "/readyz")
            return scene.faults

    return {one.name: faults for one in damages if (faults := check(one))}


@pytest.mark.parametrize("table", OF_THE_SERVICE)
def test_damaged_row_of_the_service_hurts_nobody(new_scene: NewScene, database: Database, table: str) -> None:
    must_be_none(service_faults(new_scene, database, table, share_of(of_table(table), database, _SHARE)))


@pytest.mark.chaos
@pytest.mark.parametrize("table", OF_THE_SERVICE)
def test_damaged_row_of_the_service_hurts_nobody_long(new_scene: NewScene, database: Database, table: str) -> None:
    must_be_none(service_faults(new_scene, database, table, of_table(table)))


@pytest.mark.parametrize("transaction", ["read", "write"])
def test_transaction_that_failed_leaves_no_old_view(tmp_path: Path, transaction: str) -> None:
    """As long as somebody holds the error, its cursor is open; what is read next must not be as old as that."""
    with fresh_sqlite(tmp_path) as database:
        with database.write() as connection:
            connection.execute(sa.insert(schema.usage), [_usage("ann"), _usage("bob")])

        held = _fail_while_reading(getattr(database, transaction))
        with database.try_write() as connection:  # somebody else, on another connection
            connection.execute(sa.delete(schema.usage).where(schema.usage.c.owner == "ann"))
        empty(database)

        with database.read() as connection:
            left = connection.execute(sa.text("SELECT count(*) FROM usage")).scalar()
        assert (str(held), left) == ("bad row", 0)


def _usage(owner: str) -> dict[str, object]:
    return {"owner": owner, "cpu_seconds": 1.0, "gpu_seconds": 0.0}


def _fail_while_reading(transaction: Callable[[], AbstractContextManager[sa.Connection]]) -> Exception:
    try:
        with transaction() as connection:
            rows = connection.execute(sa.select(schema.usage))
            for _ in rows:
                raise ValueError("bad row")
    except ValueError as error:
        return error
    raise AssertionError("nothing was read")


def fill(scene: Scene) -> None:
    """A row at least in every table."""
    scene.call("POST", "/v1/tokens", json={"owner": "eve"})
    scene.call("PUT", "/v1/secrets/KEY", "ann", json={"value": "s"})
    gone = scene.submit(json.dumps(VICTIM).encode())
    scene.step_until(lambda: scene.state(str(gone)) == "succeeded")
    scene.step(4)
    scene.context.audit_trail.flush()
    content = json.dumps(VICTIM).encode()
    headers = {"Content-Type": "application/json", "Idempotency-Key": "k"}
    scene.call("POST", "/v1/jobs", "ann", content=content, headers=headers)
    scene.call("DELETE", f"/v1/jobs/{gone}", "ann")
