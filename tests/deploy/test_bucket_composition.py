"""The composition with deploy/bucket.yml: jobs' files in a bucket, with the account of a secret file, and no folder."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterator
from typing import Any

import pytest

from syncnorm.service.cli.job_files.job_file import load
from syncnorm.service.client.client import Client
from tests.deploy.conftest import require_engine
from tests.deploy.test_containers import DEMO, succeeded
from tests.helpers.deploy.composition import IMAGE_USER, Composition, eventually

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(2400)]

FILES = ("docker-compose.yml", "deploy/bucket.yml", "tests/deploy/s3/compose.yml")
SETTINGS = {
    "COMPOSE_FILE": ":".join(FILES),
    "SYNCNORM_EXTRAS": "s3",
    "SYNCNORM_IMAGE": "syncnorm:bucket",
    "SYNCNORM_STORAGE": "s3://jobs/syncnorm",
    "AWS_ENDPOINT_URL": "http://s3:9000",
    "MOTO": importlib.metadata.version("moto"),
}
NAMES = """
import fsspec
print(*fsspec.filesystem("s3").find("jobs"), sep="\\n")
"""


@pytest.fixture(scope="module")
def composition(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composition]:
    require_engine()
    made = Composition(tmp_path_factory.mktemp("bucket"), "syncnorm-test-bucket", SETTINGS)
    made.remove()
    try:
        made.make_secrets()
        made.compose("build", "migrate", "s3", timeout_s=2400)
        made.compose("up", "-d", "s3")
        prepared = made.execute("s3", "python3", "/prepare.py")
        account = made.secrets / "storage_credentials"
        account.write_text(prepared)
        account.chmod(0o400)
        if os.getuid() == 0:
            os.chown(account, IMAGE_USER, IMAGE_USER)
        made.up()
        made.wait_until_ready(600)
        yield made
    finally:
        made.remove()


@pytest.fixture(scope="module")
def client(composition: Composition) -> Iterator[Client]:
    with composition.client() as found:
        yield found


@pytest.fixture(scope="module")
def job(composition: Composition, client: Client) -> dict[str, Any]:
    composition.wait_for_workers()
    return succeeded(client, client.submit(load(DEMO, []))["id"])


def test_job_of_two_workers_keeps_its_files_in_the_bucket_alone(composition: Composition, job: dict[str, Any]) -> None:
    kept = composition.execute("api", "python", "-c", NAMES).split()
    shared = composition.execute("api", "find", "/storage", "-type", "f").split()
    scratch = composition.execute("ray-worker", "find", "/scratch", "-mindepth", "1").split()

    folder = f"jobs/syncnorm/jobs/{job['id']}/attempts/1"
    assert {f"{folder}/result.json", f"{folder}/export/certificate.json"} <= set(kept)
    assert any(name.endswith("/manifest.json") for name in kept)
    assert (shared, scratch) == ([], [])


def test_doctor_reaches_the_bucket_from_every_worker(composition: Composition, job: dict[str, Any]) -> None:
    report = composition.execute("api", "syncnorm", "doctor")

    assert "s3://jobs/syncnorm" in report
    assert "wrong" not in report


def test_deleted_job_leaves_nothing_in_the_bucket(
    composition: Composition, client: Client, job: dict[str, Any]
) -> None:
    client.delete(job["id"])

    eventually(lambda: job["id"] not in composition.execute("api", "python", "-c", NAMES), 60)
