"""The whole service with its storage in a bucket that goes away meanwhile: no file system is shared."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import httpx
import pytest
import yaml

from syncnorm.service.client.client import Client
from syncnorm.trainer.contract.protocol import CANNOT_BEGIN
from syncnorm.trainer.storage.atomic_files import sha256_of
from syncnorm.trainer.storage.storage import storage_at
from tests.helpers.paths import EXAMPLES
from tests.helpers.s3 import S3
from tests.stack.conftest import Serving, eventually, finished

pytestmark = [pytest.mark.stack, pytest.mark.chaos, pytest.mark.timeout(600)]

EXAMPLE = EXAMPLES / "digits-sync-batch.yaml"
LONG = {"epochs": 12, "checkpoint_every": {"steps": 10}}


@pytest.fixture(scope="module")
def storage(s3_server: S3) -> Iterator[str]:
    with s3_server.used():
        yield f"{s3_server.new_bucket()}/runs"


@pytest.fixture(scope="module")
def client(storage: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    scratch = tmp_path_factory.mktemp("scratch")
    running = Serving(tmp_path_factory.mktemp("home"), SYNCNORM_STORAGE=storage, SYNCNORM_SCRATCH=str(scratch))
    try:
        with eventually(running.ready, 180) as found:
            yield found
    finally:
        running.interrupt()
    assert list(scratch.iterdir()) == []


@pytest.fixture(scope="module")
def job(client: Client, s3_server: S3) -> dict[str, Any]:
    """Paused and resumed, with the bucket away for some seconds in its second attempt."""
    document = yaml.safe_load(EXAMPLE.read_text())
    job_id = client.submit(document | {"train": document["train"] | LONG})["id"]
    eventually(lambda: client.job(job_id)["progress"]["step"] > 40, 200)
    client.pause(job_id)
    eventually(lambda: client.job(job_id)["state"] == "paused", 100)
    client.resume(job_id)
    eventually(lambda: client.job(job_id)["progress"]["step"] > 100, 200)
    s3_server.line.cut()
    eventually(lambda: [one for one in client.logs(job_id, tail=200) if "is unavailable; retrying" in one["text"]], 60)
    s3_server.line.mend()
    return finished(client, job_id)


def names(storage: str, job: dict[str, Any], attempt: int) -> list[str]:
    return storage_at(f"{storage}/jobs/{job['id']}/attempts/{attempt}").names()


def test_job_ends_with_a_certificate_though_the_bucket_was_away(job: dict[str, Any], client: Client) -> None:
    attempts = client.attempts(job["id"])

    assert (job["state"], job["reason"]) == ("succeeded", None), job["message"]
    assert job["model"]["certificate"]["passed"]
    assert job["progress"]["metrics"]["val/accuracy"] >= 0.95
    assert [one["outcome"] for one in attempts] == ["stopped", "succeeded"]


def test_result_is_the_last_of_all(job: dict[str, Any], storage: str) -> None:
    filesystem, root = fsspec.url_to_fs(f"{storage}/jobs/{job['id']}/attempts/2", use_listings_cache=False)

    listed = filesystem.find(root, detail=True)

    at = {path.removeprefix(f"{root}/"): facts["LastModified"] for path, facts in listed.items()}
    assert max(at.values()) == at["result.json"]
    assert at["export/certificate.json"] >= at["export/weights.safetensors"]


def test_each_attempt_keeps_its_newest_checkpoints_and_its_metrics(
    job: dict[str, Any], client: Client, storage: str
) -> None:
    manifests = [name for name in names(storage, job, 2) if name.endswith("manifest.json")]

    assert len(manifests) == 3
    assert f"checkpoints/step-{job['progress']['step']:010d}/manifest.json" == manifests[-1]
    assert {"metrics.jsonl", "launch.json", "ranks.json"} <= set(names(storage, job, 1))
    assert all(one["path"].startswith(f"{storage}/jobs/{job['id']}/") for one in client.checkpoints(job["id"]))


def test_metrics_and_statistics_of_both_attempts_are_in_the_run(job: dict[str, Any]) -> None:
    run_id, uri = job["mlflow"]["run_id"], str(job["mlflow"]["url"]).split("/#/")[0]
    epochs = list(range(23, 12 * 23 + 1, 23))

    with httpx.Client(base_url=f"{uri}/api/2.0/mlflow/", timeout=30) as rest:
        points = rest.get("metrics/get-history", params={"run_id": run_id, "metric_key": "train/loss"}).json()
        files = rest.get("artifacts/list", params={"run_id": run_id, "path": "norm/statistics"}).json()["files"]

    assert [point["step"] for point in points["metrics"]] == epochs
    assert sorted(int(one["path"].rpartition("-")[2].partition(".")[0]) for one in files) == epochs


def test_job_is_exported_again_from_the_bucket(job: dict[str, Any], client: Client) -> None:
    asked = client.export(job["id"], formats=["onnx"])

    def over() -> dict[str, Any] | None:
        found = client.one_export(job["id"], asked["name"])
        return found if found["state"] in ("succeeded", "failed") else None

    export = eventually(over, 120)
    assert (export["state"], export["passed"]) == ("succeeded", True), export["message"]


def test_files_come_from_the_bucket_over_the_service(job: dict[str, Any], client: Client, tmp_path: Path) -> None:
    found = {one["path"]: one for one in client.files(job)}

    saved = client.download(job, "export/weights.safetensors", tmp_path)
    state = client.download(job, f"checkpoints/{job['progress']['step']}/state.pt", tmp_path)

    assert sha256_of(saved) == found["export/weights.safetensors"]["digest"]
    assert state.stat().st_size == found[f"checkpoints/{job['progress']['step']}/state.pt"]["size_bytes"]
    assert {"spec.yaml", "plan.json", "export/plain.safetensors", "norm/statistics/step-276.safetensors"} <= set(found)


def test_job_goes_on_in_another_attempt_after_a_longer_outage(
    job: dict[str, Any], client: Client, storage: str, s3_server: S3
) -> None:
    document = yaml.safe_load(EXAMPLE.read_text()) | {"name": "outage", "limits": {"collective_timeout_s": 20}}
    job_id = client.submit(document | {"train": document["train"] | LONG})["id"]
    eventually(lambda: client.checkpoints(job_id), 200)

    s3_server.line.cut()  # the ranks wait for it 10 s
    eventually(lambda: client.attempts(job_id)[0]["outcome"], 200)
    meanwhile = client.job(job_id)
    s3_server.line.mend()
    done = finished(client, job_id)

    assert (meanwhile["state"], meanwhile["reason"]) == ("queued", "storage")
    assert (done["state"], done["reason"]) == ("succeeded", None), done["message"]
    assert [(one["outcome"], one["reason"]) for one in client.attempts(job_id)] == [
        ("failed", "storage"),
        ("succeeded", None),
    ]
    assert len(names(storage, done, 2)) > 0


def test_host_without_rights_fails_the_job_with_what_to_change(client: Client, storage: str, s3_server: S3) -> None:
    document = yaml.safe_load(EXAMPLE.read_text()) | {"name": "refused"}
    keys = {name: value for name, value in s3_server.reading.items() if "URL" not in name}

    # Variables of the job stand on its workers, not for its driver: so some hosts have other credentials than others.
    job = finished(client, client.submit(document | {"env": keys})["id"])

    assert (job["state"], job["reason"]) == ("failed", "storage")
    assert "Access Denied" in job["message"]
    assert "Check the credentials on this host" in job["message"]
    assert CANNOT_BEGIN not in job["message"]


def test_deleted_job_leaves_nothing_in_the_bucket(job: dict[str, Any], client: Client, storage: str) -> None:
    before = names(storage, job, 1)

    eventually(lambda: not client.delete(job["id"]), 60)

    assert before
    eventually(lambda: not storage_at(f"{storage}/jobs/{job['id']}").names(), 60)
