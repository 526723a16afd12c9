"""A storage that can't be used now: nothing is concluded from its silence, and everything goes on when it is back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from syncnorm.service.cli.doctor import _storage
from syncnorm.service.jobs.attempt_ending import RayStatus, Rules
from syncnorm.service.jobs.job import JobState
from syncnorm.service.jobs.lifecycle import Move, decide
from syncnorm.service.reconciler.backends import AttemptEnvironment
from syncnorm.service.scheduling.explanation import explain
from syncnorm.service.settings import Settings
from syncnorm.service.storage.attempt_files import read_metrics, read_result, write_launch
from syncnorm.service.storage.circuit_breaker import REST_S, StorageCircuitBreaker
from syncnorm.service.storage.code_packages import CodePackages
from syncnorm.service.studies.collect import read_series
from syncnorm.trainer.contract.failure import FailureReason
from syncnorm.trainer.contract.protocol import (
    CANNOT_BEGIN,
    CANNOT_BEGIN_NOW,
    LAUNCH_FILE,
    METRICS_FILE,
    RESULT_FILE,
    Result,
)
from syncnorm.trainer.errors import StorageError
from syncnorm.trainer.storage.storage import storage_at
from tests.helpers.s3 import S3
from tests.helpers.service.api import SPEC, api
from tests.helpers.service.databases import fresh_sqlite
from tests.helpers.service.world import World
from tests.helpers.trainer.ranks import launch_of
from tests.service.api.test_api import problem
from tests.service.jobs.test_lifecycle import LEASE_OUT, attempt, job, observation


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with fresh_sqlite(tmp_path) as database:
        made = World(tmp_path, database)
        made.reconciler.backends.storage = StorageCircuitBreaker(lambda: made.clock().timestamp())
        yield made


@contextmanager
def away(folder: Path) -> Iterator[None]:
    """What lies in `folder` can't be reached meanwhile."""
    aside = folder.with_name("aside")
    folder.mkdir(parents=True, exist_ok=True)
    folder.rename(aside)
    folder.symlink_to(folder)  # too many levels of symbolic links, for root as well
    try:
        yield
    finally:
        folder.unlink()
        aside.rename(folder)


def explanation(world: World, job_id: str) -> str:
    problem_now = world.reconciler.backends.storage.problem
    return explain(world.job(job_id), None, None, 0, problem_now).code


def test_job_that_succeeded_is_not_given_up_while_its_result_can_not_be_read(world: World) -> None:
    submitted = world.submit()
    while not (world.folder / "jobs" / submitted.id / "attempts" / "1" / RESULT_FILE).exists():
        world.step()

    with away(world.folder / "jobs"):
        for _ in range(30):  # long after its lease, with Ray's word that it ended
            world.step()
        meanwhile, why = world.job(submitted.id), explanation(world, submitted.id)
    for _ in range(4):
        world.step()

    assert (meanwhile.is_terminal, meanwhile.attempt, meanwhile.failures) == (False, 1, 0)
    assert why == "storage_unreachable"
    assert world.job(submitted.id).state is JobState.SUCCEEDED
    assert world.reconciler.backends.storage.problem is None


def test_launch_waits_for_the_storage_and_is_made_once(world: World) -> None:
    with away(world.folder / "jobs"):
        submitted = world.submit()
        for _ in range(10):
            world.step()
        meanwhile, started = world.job(submitted.id), dict(world.cluster.starts)
    while not world.job(submitted.id).is_terminal:
        world.step()

    assert (meanwhile.state, started) == (JobState.STARTING, {})
    assert world.job(submitted.id).state is JobState.SUCCEEDED
    assert world.cluster.starts == {f"{submitted.id}-1": 1}


def test_export_is_not_lost_while_its_result_can_not_be_read(world: World) -> None:
    done = world.succeed()
    export = world.export(done)
    while not (world.folder / "jobs" / done.id / "exports" / "2" / "1" / RESULT_FILE).exists():
        world.step()

    with away(world.folder / "jobs"):
        for _ in range(10):
            world.step()
        (meanwhile,) = world.store.exports.of_job(done.id)
    for _ in range(4):
        world.step()

    assert (meanwhile.state, meanwhile.starts) == ("running", 1)
    assert [(one.number, one.state) for one in world.store.exports.of_job(done.id)] == [(export.number, "succeeded")]


def test_files_of_a_deleted_job_wait_for_the_storage(world: World) -> None:
    done = world.succeed()
    world.store.jobs.delete(world.job(done.id))

    with away(world.folder / "jobs"):
        world.step()
        waiting = world.store.removals.pending(9)
    for _ in range(4):
        world.step()

    assert waiting == [done.id]
    assert world.store.removals.pending(9) == []
    assert list((world.folder / "jobs").iterdir()) == []


def test_files_of_a_deleted_job_go_from_a_bucket(world: World, bucket: str) -> None:
    done = world.succeed()
    for name in ("attempts/1/checkpoints/step-1/state.pt", "exports/2/1/result.json"):
        storage_at(f"{bucket}/x").write(f"jobs/{done.id}/{name}", b"1")
    storage_at(f"{bucket}/x").write("jobs/other/attempts/1/result.json", b"1")
    world.reconciler.backends.environment = AttemptEnvironment(f"{bucket}/x", "http://nobody", "http://nobody")

    world.store.jobs.delete(world.job(done.id))
    world.step()

    assert storage_at(f"{bucket}/x").names() == ["jobs/other/attempts/1/result.json"]


def test_dead_attempt_is_given_up_only_after_a_look_at_the_storage() -> None:
    gone = attempt(**LEASE_OUT)
    dead = observation(RayStatus.ENDED, node_gone=True)

    assert isinstance(decide(job(), gone, dead, Rules()), Move)
    assert decide(job(), gone, replace(dead, storage_away=True), Rules()) is None


def test_cancelled_job_ends_without_a_look_at_the_storage() -> None:
    gone, dead = attempt(**LEASE_OUT), observation(RayStatus.ENDED, node_gone=True, storage_away=True)

    decision = decide(job(JobState.STOPPING, stop="cancel"), gone, dead, Rules())

    assert isinstance(decision, Move)
    assert decision.to is JobState.CANCELLED


def test_driver_that_can_not_read_its_launch_file_fails_the_job_as_storage() -> None:
    said = f"failed with exit code 1, last logs:\nTraceback\n{CANNOT_BEGIN}the storage s3://b refused to read x.\n"

    decision = decide(job(), attempt(**LEASE_OUT), observation(RayStatus.ENDED, ray_message=said), Rules())

    assert isinstance(decision, Move)
    assert (decision.to, decision.changes["reason"]) == (JobState.FAILED, FailureReason.STORAGE)
    assert decision.changes["message"] == "the storage s3://b refused to read x."


def test_driver_that_finds_the_storage_away_is_followed_by_another() -> None:
    said = f"failed with exit code 1\n{CANNOT_BEGIN_NOW}the storage s3://b did not answer to read x.\n"

    decision = decide(job(), attempt(**LEASE_OUT), observation(RayStatus.ENDED, ray_message=said), Rules())

    assert isinstance(decision, Move)
    assert (decision.to, decision.changes["reason"]) == (JobState.QUEUED, FailureReason.STORAGE)
    assert decision.changes["message"] == "the storage s3://b did not answer to read x."


def test_outage_is_followed_by_another_attempt_until_the_budget_is_spent() -> None:
    away = Result(fence="f", outcome="failed", reason=FailureReason.STORAGE, message="s3://b is away.", outage=True)
    refused = away.model_copy(update={"outage": False})

    moves = {
        name: decide(job(failures=failures), attempt(), observation(result=result), Rules())
        for name, failures, result in (("first", 0, away), ("last", 3, away), ("refused", 0, refused))
    }

    assert all(isinstance(move, Move) for move in moves.values())
    assert {name: move.to for name, move in moves.items() if isinstance(move, Move)} == {
        "first": JobState.QUEUED,
        "last": JobState.FAILED,
        "refused": JobState.FAILED,
    }
    first, last = moves["first"], moves["last"]
    assert isinstance(first, Move)
    assert isinstance(last, Move)
    assert first.message == "s3://b is away. The next attempt starts in 10 s at the earliest."
    assert first.changes["failures"] == 1
    assert last.changes["reason"] is FailureReason.STORAGE
    assert "limits.max_failures of 3 is used up: an operator must" in last.changes["message"]


def test_storage_that_is_away_is_asked_once_in_a_while() -> None:
    now, asked = 0.0, 0

    def fail() -> None:
        nonlocal asked
        asked += 1
        raise StorageError("away")

    gate = StorageCircuitBreaker(lambda: now)
    for now in (0.0, 1.0, REST_S - 0.1, REST_S + 0.1):  # noqa: B007
        with pytest.raises(StorageError, match="away"):
            gate.ask(fail)

    assert asked == 2
    now = 100.0
    assert gate.problem is None


def test_answer_while_the_storage_is_away_is_a_problem_and_not_empty(tmp_path: Path) -> None:
    with api(tmp_path, allow_code=True) as (client, _), away(tmp_path / "packages"):
        document = SPEC | {"code": {"package": f"sha256:{'0' * 64}"}}
        answer = client.post("/v1/jobs", json=document)

    problem(answer, 503, "storage_unreachable")
    assert answer.headers["Retry-After"] == "10"


def test_result_launch_and_metrics_of_an_attempt_in_a_bucket(bucket: str) -> None:
    folder = f"{bucket}/runs/jobs/j/attempts/1"
    lines = [json.dumps({"key": "train/loss", "value": 1 / step, "step": step, "timestamp": 0}) for step in (1, 2)]
    before = read_result(folder, "f")
    write_launch(folder, launch_of(SPEC))
    storage_at(folder).write(METRICS_FILE, "\n".join([*lines, '{"half']).encode())
    storage_at(folder).write(RESULT_FILE, Result(fence="f", outcome="succeeded", step=3).model_dump_json().encode())

    result = read_result(folder, "f")

    assert before is None
    assert result is not None
    assert (result.step, read_result(folder, "another")) == (3, None)
    assert storage_at(folder).names() == [LAUNCH_FILE, METRICS_FILE, RESULT_FILE]
    assert len(read_metrics(folder)) == 2
    assert read_series([folder, f"{bucket}/runs/jobs/j/attempts/2"]) == {"train/loss": [(1, 1.0), (2, 0.5)]}


def test_series_of_a_bucket_that_is_away_is_not_an_empty_one(bucket: str, s3_server: S3) -> None:
    s3_server.line.cut()
    try:
        with pytest.raises(StorageError, match="did not answer"):
            read_series([f"{bucket}/runs/jobs/j/attempts/1"])
    finally:
        s3_server.line.mend()


def test_packages_are_kept_in_a_bucket(bucket: str, tmp_path: Path) -> None:
    packages, digest = CodePackages(f"{bucket}/runs"), f"sha256:{'a' * 64}"
    (tmp_path / "a.zip").write_bytes(b"zip")
    before = packages.has(digest)

    with (tmp_path / "a.zip").open("rb") as archive:
        packages.put(digest, archive)

    assert (before, packages.has(digest)) == (False, True)
    assert packages.path(digest) == f"{bucket}/runs/packages/{'a' * 64}.zip"


def test_doctor_writes_to_a_bucket_reads_and_deletes(bucket: str, s3_server: S3) -> None:
    fine = _storage(f"{bucket}/runs")

    assert (fine.detail, fine.problem) == (f"{bucket}/runs", None)
    assert storage_at(bucket).names() == []
    with s3_server.used(s3_server.reading), pytest.raises(StorageError, match=r"Access Denied.*Check the credentials"):
        _storage(f"{bucket}/runs")


@pytest.mark.parametrize(
    "storage", ["s3://key:secret@host/bucket", "s3://bucket/x?key=a", "simplecache::s3://bucket", "s3://bucket/a b"]
)
def test_address_that_may_hold_a_secret_or_options_is_refused(storage: str) -> None:
    with pytest.raises(ValueError, match="SYNCNORM_STORAGE must be a folder or a plain address"):
        Settings.from_environment({"SYNCNORM_STORAGE": storage})


@pytest.mark.parametrize("storage", ["s3://bucket/a/b", "gs://bucket", "/mnt/a b@c", "file:///mnt/x"])
def test_folders_and_plain_addresses_are_taken(storage: str) -> None:
    assert Settings.from_environment({"SYNCNORM_STORAGE": storage}).storage_root == storage.removeprefix("file://")


def test_memory_of_one_process_is_no_storage() -> None:
    with pytest.raises(ValueError, match="storage that all hosts reach"):
        Settings.from_environment({"SYNCNORM_STORAGE": "memory://jobs"})
