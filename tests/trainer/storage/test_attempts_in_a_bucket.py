"""Attempts whose storage is a bucket: what is on it is whole, and a job goes on from it as from a folder."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from fsspec.registry import registry
from ray.train import WorkerGroupError

from syncnorm.trainer.contract.failure import FailureReason
from syncnorm.trainer.contract.protocol import (
    CANNOT_BEGIN,
    CANNOT_BEGIN_NOW,
    EXPORT_FILE,
    LAUNCH_FILE,
    RESULT_FILE,
    ExportRequest,
    Launch,
    Result,
)
from syncnorm.trainer.contract.spec_reader import read_spec
from syncnorm.trainer.driver import main
from syncnorm.trainer.driver import reexport as again
from syncnorm.trainer.driver.resume_point import resume_point
from syncnorm.trainer.errors import CheckpointCorruptError, RankFailedError, StorageError
from syncnorm.trainer.failure_classifier import classify
from syncnorm.trainer.ranks import preflight
from syncnorm.trainer.storage.attempt_layout import AttemptFolders, opened
from syncnorm.trainer.storage.storage import storage_at
from syncnorm.trainer.storage.sync import Mirrored
from syncnorm.trainer.training import checkpoints
from syncnorm.trainer.training.checkpoints import MANIFEST, STATE
from syncnorm.trainer.worker import worker
from tests.helpers.bucket_server import BucketServer
from tests.helpers.norm.pool import Pool
from tests.helpers.trainer import on_ray
from tests.helpers.trainer.ranks import RecordingReporter, TrainedModel, launch_of, rank_context, train
from tests.trainer.conftest import Mlflow
from tests.trainer.driver.test_resume import Undisturbed, assert_same, die_at, spec

EVERYWHERE = pytest.mark.parametrize("server", ["s3", "gs", "az"], indirect=True)
LONG_EVERYWHERE = pytest.mark.parametrize(
    "server", ["s3", *(pytest.param(each, marks=pytest.mark.chaos) for each in ("gs", "az"))], indirect=True
)


def become(environment: dict[str, str]) -> None:
    """A rank, whose process was started before there was a bucket, as on a host that has `environment`."""
    os.environ.update(environment)
    for kind in registry.values():  # clients keep the credentials that they found
        kind.clear_instance_cache()


def attempt(bucket: str, number: int = 1) -> str:
    return f"{bucket}/runs/jobs/j/attempts/{number}"


def kept(url: str) -> list[str]:
    return storage_at(url).names()


def save(folders: AttemptFolders, step: int) -> Path:
    """As the checkpoint callback does."""
    state = {"w": torch.full((1000,), float(step))}
    saved = checkpoints.write(folders.checkpoints, state, step=step, epoch=0, world_size=2, fence="f")
    checkpoints.publish(saved.path, folders.mirror)
    folders.mirror.forget(saved.path)
    return saved.path


@pytest.fixture
def three(bucket: str) -> str:
    """An attempt that has left three checkpoints."""
    url = attempt(bucket)
    with opened(url) as folders:
        for step in (10, 20, 30):
            save(folders, step)
    return url


def newest(url: str) -> tuple[int, float] | None:
    """(step, a value) of what another host would go on from."""
    with opened(url) as folders:
        found = checkpoints.newest([folders.checkpoints], folders.mirror)
        return None if found is None else (found.step, float(checkpoints.load(found.path, folders.mirror)["w"][0]))


@EVERYWHERE
def test_another_host_reads_back_what_was_saved(three: str) -> None:
    assert newest(three) == (30, 30.0)
    assert kept(f"{three}/checkpoints")[:2] == [f"step-0000000010/{MANIFEST}", f"step-0000000010/{STATE}"]


def test_nothing_of_an_attempt_is_left_on_the_host(bucket: str) -> None:
    with opened(attempt(bucket)) as folders:
        save(folders, 10)
        here = folders.root

    assert not any(parent.name.startswith("syncnorm-scratch-") and parent.exists() for parent in here.parents)


@EVERYWHERE
def test_upload_that_was_killed_before_its_manifest_does_not_count(three: str) -> None:
    storage_at(three).write(f"checkpoints/step-0000000040/{STATE}", b"half of it")

    assert newest(three) == (30, 30.0)


@EVERYWHERE
@pytest.mark.parametrize("name", [STATE, MANIFEST])
def test_damaged_newest_falls_back_to_the_one_before(three: str, name: str) -> None:
    storage, path = storage_at(three), f"checkpoints/step-0000000030/{name}"
    content = bytearray(storage.read(path))
    content[len(content) // 2] ^= 1
    storage.write(path, bytes(content))

    assert newest(three) == (20, 20.0)


@EVERYWHERE
def test_bucket_away_at_resume_is_not_a_corrupt_checkpoint(three: str, server: BucketServer) -> None:
    chosen = f"{three}/checkpoints/step-0000000030"
    launch = launch_of(spec("batch")).model_copy(update={"resume_from": chosen, "attempt": 2})
    told: Any = RecordingReporter()

    with opened(attempt(three.partition("/runs")[0], 2), patience_s=0.0) as folders:
        before = resume_point(launch, folders, told)
        server.line.cut()
        try:
            with pytest.raises(StorageError, match="did not answer") as raised:
                resume_point(launch, folders, told)
        finally:
            server.line.mend()

    assert before == chosen
    assert told.events == []
    assert classify(raised.value, rank=-1).reason is FailureReason.STORAGE


@EVERYWHERE
def test_corrupt_choice_falls_back_to_an_earlier_attempt_on_the_bucket(three: str) -> None:
    bucket, told = three.partition("/runs")[0], RecordingReporter()
    with opened(attempt(bucket, 2)) as folders:
        save(folders, 40)
    chosen = f"{attempt(bucket, 2)}/checkpoints/step-0000000040"
    storage_at(chosen).remove(STATE)
    launch = launch_of(spec("batch")).model_copy(update={"resume_from": chosen, "attempt": 3})

    with opened(attempt(bucket, 3)) as folders:
        used = resume_point(launch, folders, told)  # type: ignore[arg-type]

    assert used == f"{three}/checkpoints/step-0000000030"
    assert [kind for kind, _, _ in told.events] == ["checkpoint_fallback"]


def test_checkpoint_of_a_storage_that_was_changed_since_is_named(three: str, tmp_path: Path) -> None:
    (tmp_path / "step-0000000010").mkdir()
    (tmp_path / "step-0000000010" / MANIFEST).write_text("{}")
    launch = launch_of(spec("batch")).model_copy(update={"resume_from": str(tmp_path / "step-0000000010")})

    with opened(three) as folders, pytest.raises(CheckpointCorruptError, match="step-0000000010"):
        resume_point(launch, folders, RecordingReporter())  # type: ignore[arg-type]

    assert (tmp_path / "step-0000000010" / MANIFEST).exists()


@EVERYWHERE
def test_old_checkpoints_go_manifest_first(three: str) -> None:
    removed: list[str] = []
    with opened(three) as folders:
        mirror: Any = folders.mirror
        original = mirror._storage.remove
        mirror._storage.remove = lambda name: (removed.append(name.partition("checkpoints/")[2]), original(name))
        checkpoints.retain(folders.checkpoints, 1, {10}, mirror)

    assert kept(f"{three}/checkpoints") == [
        f"step-00000000{step}/{name}" for step in (10, 30) for name in (MANIFEST, STATE)
    ]
    assert removed == [f"step-0000000020/{MANIFEST}", "step-0000000020"]


def with_environment(rank: int, world_size: int, environment: dict[str, str], function: Any, *args: Any) -> Any:
    become(environment)
    return function(rank, world_size, *args)


@pytest.fixture(scope="module")
def whole(ranks: Pool, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """The job of these tests in one go, in a folder."""
    root = tmp_path_factory.mktemp("whole")
    return Undisturbed(root, ranks.run(train, 2, str(root), DOCUMENT)[0])


DOCUMENT = spec("sync_batch")


def assert_same_as(whole: Undisturbed, parts: TrainedModel, bucket: str, folder: Path) -> None:
    roots = [folder / str(number) for number in (1, 2)]
    for number, root in enumerate(roots, 1):
        storage_at(attempt(bucket, number)).get("metrics.jsonl", root / "metrics.jsonl")
    assert_same(whole, parts, *roots)


def go_on(ranks: Pool, bucket: str, environment: dict[str, str]) -> TrainedModel:
    with opened(attempt(bucket, 2)) as folders:
        found = checkpoints.newest([each.checkpoints for each in folders.earlier(2)], folders.mirror)
        start = folders.mirror.name(found.path) if found else None
    resumed: TrainedModel = ranks.run(with_environment, 2, environment, train, attempt(bucket, 2), DOCUMENT, start)[0]
    return resumed


@LONG_EVERYWHERE
def test_paused_job_goes_on_bit_for_bit(
    ranks: Pool, bucket: str, server: BucketServer, whole: Undisturbed, tmp_path: Path
) -> None:
    told = RecordingReporter(stop_at=8)
    paused = ranks.run(with_environment, 2, server.environment, train, attempt(bucket), DOCUMENT, None, told)[0]

    resumed = go_on(ranks, bucket, server.environment)

    assert paused.stopped_at == 9
    assert_same_as(whole, resumed, bucket, tmp_path)
    assert [name for name in kept(f"{attempt(bucket, 2)}/checkpoints") if name.endswith(MANIFEST)] == [
        f"step-00000000{step}/{MANIFEST}" for step in (14, 16, 18)
    ]


def train_and_die(
    rank: int, world_size: int, victim: int, where: str, call: int, root: str, document: dict[str, Any]
) -> TrainedModel:
    with die_at(where, call) if rank == victim else nullcontext():
        return train(rank, world_size, root, document)


@pytest.mark.parametrize(
    ("victim", "where", "call"),
    [
        (0, "backward", 8),
        pytest.param(1, "forward", 11, marks=pytest.mark.chaos),
        pytest.param(0, "write", 7, marks=pytest.mark.chaos),
        pytest.param(1, "agreement", 5, marks=pytest.mark.chaos),
    ],
)
def test_killed_rank_is_made_up_for_bit_for_bit(
    ranks: Pool,
    bucket: str,
    server: BucketServer,
    whole: Undisturbed,
    tmp_path: Path,
    victim: int,
    where: str,
    call: int,
) -> None:
    arguments = (train_and_die, victim, where, call, attempt(bucket), DOCUMENT)
    with pytest.raises(RuntimeError, match=r"rank \d of 2 died|Connection|peer"):
        ranks.run(with_environment, 2, server.environment, *arguments)
    ranks.stop()  # the survivor may still be waiting

    resumed = go_on(ranks, bucket, server.environment)

    assert_same_as(whole, resumed, bucket, tmp_path)


def check(rank: int, world_size: int, environments: list[dict[str, str]], roots: list[str]) -> None:
    become(environments[rank])
    with opened(roots[rank], patience_s=0.0) as folders:
        preflight.check(folders, rank_context(rank, world_size), "f", 60.0)


@LONG_EVERYWHERE
def test_ranks_of_one_bucket_pass_and_are_written_down(ranks: Pool, bucket: str, server: BucketServer) -> None:
    ranks.run(check, 2, [server.environment] * 2, [attempt(bucket)] * 2)

    facts = json.loads(storage_at(attempt(bucket)).read("ranks.json"))
    assert [fact["rank"] for fact in facts] == [0, 1]
    assert kept(attempt(bucket)) == ["preflight", "ranks.json"]


def test_rank_that_sees_another_bucket_or_may_not_write_is_named_on_all_ranks(
    ranks: Pool, bucket: str, server: BucketServer
) -> None:
    other = ranks.outcomes(check, 2, [server.environment] * 2, [attempt(bucket), attempt(server.new_bucket())])
    refused = ranks.outcomes(check, 2, [server.environment, server.reading], [attempt(bucket)] * 2)

    for _, error, _ in [*other, *refused]:
        assert isinstance(error, StorageError)
        assert "rank 1 on" in str(error)
        assert "rank 0" not in str(error)
    assert "Access Denied" in str(refused[0][1])


def work(rank: int, world_size: int, environment: dict[str, str], url: str) -> dict[str, Any] | None:
    become(environment)
    return worker.train_at(rank_context(rank, world_size), {"folder": url, "resume_from": None, "patience_s": 0.0})


SMALL: dict[str, Any] = {
    "name": "small",
    "model": {"name": "mlp", "init_args": {"hidden": [8]}},
    "data": {"name": "digits", "batch_size": 180},
    "norm": {"kind": "sync_batch"},
    "train": {"epochs": 1},
    "resources": {"workers": 2},
    "export": {"formats": ["onnx"]},
}


def launch(bucket: str, server: Mlflow | None = None) -> Launch:
    facts = launch_of(SMALL).model_copy(
        update={} if server is None else {"mlflow_uri": server.uri, "mlflow_run_id": server.new_run()}
    )
    storage_at(attempt(bucket)).write(LAUNCH_FILE, facts.model_dump_json().encode())
    return facts


def test_host_that_may_not_write_fails_the_job_as_storage(ranks: Pool, bucket: str, server: BucketServer) -> None:
    facts = launch(bucket)

    outcomes = ranks.outcomes(work, 2, server.reading, attempt(bucket))
    with opened(attempt(bucket)) as folders:
        raised = {rank: error for rank, (_, error, _) in enumerate(outcomes)}
        cause = main._why(facts, folders, WorkerGroupError("", raised))
    result = main._failed(facts, cause)

    assert all(isinstance(error, RankFailedError) for error in raised.values())
    assert (result.outcome, result.reason) == ("failed", FailureReason.STORAGE)
    assert "Check the credentials on this host" in result.message


def test_bucket_that_stays_away_ends_the_attempt_as_an_outage(ranks: Pool, bucket: str, server: BucketServer) -> None:
    facts = launch(bucket)
    server.line.cut()
    try:
        outcomes = ranks.outcomes(check, 2, [server.environment] * 2, [attempt(bucket)] * 2)
        with opened(attempt(bucket), patience_s=0.0) as folders:
            left = {
                rank: RankFailedError(classify(error, rank).model_dump_json())
                for rank, (_, error, _) in enumerate(outcomes)
            }
            result = main._failed(facts, main._why(facts, folders, WorkerGroupError("", left)))
    finally:
        server.line.mend()

    assert (result.reason, result.outage) == (FailureReason.STORAGE, True)
    assert "rank 0 on" in result.message
    assert "did not answer" in result.message


def test_driver_that_finds_the_bucket_away_says_so_in_its_last_line(
    bucket: str, server: BucketServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    launch(bucket)
    monkeypatch.setattr(main, "opened", partial(opened, patience_s=0.0))

    server.line.cut()
    try:
        main.main(attempt(bucket))
    finally:
        server.line.mend()

    assert capsys.readouterr().err.splitlines()[-1].startswith(f"{CANNOT_BEGIN_NOW}the storage {bucket} did not answer")


def test_driver_without_credentials_says_so_in_its_last_line(
    bucket: str, server: BucketServer, capsys: pytest.CaptureFixture[str]
) -> None:
    launch(bucket)

    with server.used(server.reading | {"AWS_ACCESS_KEY_ID": "unknown"}):
        code = main.main(attempt(bucket))

    *_, last = capsys.readouterr().err.splitlines()
    assert code == 1
    assert last.startswith(f"{CANNOT_BEGIN}the storage {bucket} refused to read")


@LONG_EVERYWHERE
@pytest.mark.filterwarnings("ignore")  # exporters and MLflow warn about their own internals
def test_whole_job_and_a_later_export_from_a_bucket(
    ranks: Pool, bucket: str, server: BucketServer, mlflow_server: Mlflow
) -> None:
    facts = launch(bucket, mlflow_server)

    told = ranks.run(work, 2, server.environment, attempt(bucket))[0]
    with opened(attempt(bucket)) as folders:
        result = main._keep(Result.model_validate(told), facts, folders)
    export = f"{bucket}/runs/jobs/j/exports/2/1"
    request = ExportRequest(
        name="2",
        job_id="j",
        fence="g",
        spec=read_spec(SMALL | {"export": {"formats": ["pt2"]}}),
        source=f"{attempt(bucket)}/export",
        mlflow_uri=mlflow_server.uri,
        mlflow_run_id=facts.mlflow_run_id,
    )
    storage_at(export).write(EXPORT_FILE, request.model_dump_json().encode())
    again.main(export)

    assert result.outcome == "succeeded"
    assert result.checkpoint == f"{attempt(bucket)}/checkpoints/step-0000000004"
    assert {"export/certificate.json", "export/model.onnx", "metrics.jsonl", RESULT_FILE} <= set(kept(attempt(bucket)))
    exported = Result.model_validate_json(storage_at(export).read(RESULT_FILE))
    assert exported.model is not None, exported.message
    assert exported.model.certificate["passed"]
    assert "export/model.pt2" in kept(export)


def test_files_are_published_once_and_again_when_they_change(bucket: str) -> None:
    sent: list[str] = []
    with opened(attempt(bucket)) as folders:
        mirror: Any = folders.mirror
        assert isinstance(mirror, Mirrored)
        original = mirror._storage.put
        mirror._storage.put = lambda path, name: (sent.append(path.name), original(path, name))
        for content in ("{}", "{}", '{"a": 1}'):
            folders.artifacts.mkdir(parents=True, exist_ok=True)
            if not sent or content != "{}":
                (folders.artifacts / "plan.json").write_text(content)
            mirror.publish_all(folders.artifacts)

    assert sent == ["plan.json", "plan.json"]
    assert storage_at(attempt(bucket)).read("artifacts/plan.json") == b'{"a": 1}'


@pytest.mark.chaos
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for a host with a file system of its own")
def test_hosts_that_share_no_folder_train_one_job(
    bucket: str, mlflow_server: Mlflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray Train's own storage lies in the driver's scratch folder, which the other host does not see."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("SYNCNORM_SCRATCH", str(scratch))
    facts = launch(bucket, mlflow_server)

    with on_ray.cluster(cpus=1) as address, on_ray.joined(address, scratch, cpus=1):
        result = on_ray.drive_at(address, attempt(bucket), facts)

    assert result.outcome == "succeeded", result.message
    assert result.model is not None
    assert result.model.certificate["agreement"]["ranks"] == 2
    assert list(scratch.iterdir()) == []
