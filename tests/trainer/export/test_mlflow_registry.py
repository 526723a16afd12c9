"""An export is published once in a real MLflow, wherever its start dies and whoever else works on it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import mlflow
import pytest
import requests
import torch

from syncnorm.trainer.contract.protocol import ModelRecord
from syncnorm.trainer.contract.spec import ExportSpec
from syncnorm.trainer.errors import SupersededError
from syncnorm.trainer.export.mlflow_publisher import Publisher
from syncnorm.trainer.export.mlflow_registry import CERTIFICATE_TAG
from syncnorm.trainer.storage.atomic_files import sha256_of
from tests.trainer.conftest import Mlflow
from tests.trainer.worker.test_finalize import published_model, trained

# Exporters and MLflow warn about their own internals.
pytestmark = pytest.mark.filterwarnings("ignore")

_OF_ONE_RUN = re.compile(r"/(m-)?[0-9a-f]{32}|/\d+(?=/)")


class Killed(BaseException):
    """The process is gone. Nothing of ours catches it."""


@dataclass
class Deaths:
    """Between a process and MLflow: after the request number `at` that changed something, no other gets through."""

    at: int | None = None
    changes: list[str] = field(default_factory=list)
    """What changed something, in order: the method, and the path without what is of one run only."""

    @contextmanager
    def around(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        send, dead = requests.Session.send, False

        def mortal(session: requests.Session, request: requests.PreparedRequest, **options: Any) -> requests.Response:
            nonlocal dead
            if dead:
                raise Killed
            answer = send(session, request, **options)
            path = str(request.path_url).partition("?")[0].partition("/mlflow")[2]
            if request.method != "GET" and not path.endswith("search"):
                self.changes.append(f"{request.method} {'/'.join(_OF_ONE_RUN.sub('', path).split('/')[:3])}")
                dead = len(self.changes) == self.at
            if dead:
                raise Killed
            return answer

        with monkeypatch.context() as patch:
            patch.setattr(requests.Session, "send", mortal)
            yield


@dataclass
class Job:
    """One export of one job, that may be started several times."""

    server: Mlflow
    name: str
    folder: Path
    run_id: str
    export: str = "1"
    starts: int = 0

    def publish(self, *, seed: int = 0, confirm: Callable[[], None] = lambda: None) -> ModelRecord:
        """Another start of it, as a process of its own would. seed: other weights."""
        self.starts += 1
        model = trained(job_id=self.name)
        with torch.no_grad():
            model.network[5].bias += seed
        publisher = Publisher(self.server.uri, self.run_id, confirm)
        spec = ExportSpec(formats=[], register_as=self.name)
        return published_model(model, spec, self.folder / str(self.starts), publisher, self.export)

    def versions(self) -> list[dict[str, Any]]:
        """As MLflow has them."""
        params = {"filter": f"name='{self.name}'"}
        found = httpx.get(f"{self.server.uri}/api/2.0/mlflow/model-versions/search", params=params, timeout=60).json()
        return list(found.get("model_versions", []))

    def models(self) -> list[str]:
        body = {"experiment_ids": ["0"], "filter": f"source_run_id = '{self.run_id}'"}
        url = f"{self.server.uri}/api/2.0/mlflow/logged-models/search"
        found = httpx.post(url, json=body, timeout=60).json()
        return [f"models:/{model['info']['model_id']}" for model in found.get("models", [])]

    def check(self, record: ModelRecord) -> None:
        """There is one model and one version, and the record and the certificate in the run speak of them."""
        (version,) = self.versions()
        assert record.registered == f"{self.name}/{version['version']}"
        assert self.models() == [record.uri] == [version["source"]]
        tags = {tag["key"]: tag["value"] for tag in version["tags"]}
        assert (tags["syncnorm.job_id"], tags["syncnorm.export"]) == (self.name, self.export)
        assert tags["syncnorm.weights"] == record.certificate["files"]["weights.safetensors"]
        assert tags[CERTIFICATE_TAG] == sha256_of(self.folder / str(self.starts) / "certificate.json")
        path = "export" if self.export == "1" else f"exports/{self.export}"
        params = {"path": f"{path}/certificate.json", "run_uuid": self.run_id}
        assert json.loads(httpx.get(f"{self.server.uri}/get-artifact", params=params).content) == record.certificate


@pytest.fixture
def new_job(mlflow_server: Mlflow, tmp_path: Path) -> Callable[..., Job]:
    def make(name: str, export: str = "1") -> Job:
        (tmp_path / name).mkdir()
        return Job(mlflow_server, name, tmp_path / name, mlflow_server.new_run(), export)

    return make


def die(job: Job, at: int | None, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A start that is gone after so many changes; what they were."""
    deaths = Deaths(at)
    with deaths.around(monkeypatch):
        try:
            job.publish()
        except Killed:
            assert at is not None
    return deaths.changes


def check_each(points: list[int], new_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch) -> None:
    """A start that dies after each of these changes, and another."""
    for point in points:
        job = new_job(f"dies-at-{point}-of-{len(points)}", export=str(1 + point % 2))
        die(job, point, monkeypatch)

        job.check(job.publish())


def test_export_that_dies_is_published_once(new_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch) -> None:
    changes = die(new_job("lives"), None, monkeypatch)
    kinds = ("POST /logged-models", "PATCH /logged-models", "POST /model-versions/create")

    check_each([changes.index(kind) + 1 for kind in kinds], new_job, monkeypatch)


@pytest.mark.chaos
def test_export_that_dies_after_any_change_is_published_once(
    new_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = die(new_job("quiet"), None, monkeypatch)

    check_each([number + 1 for number in range(len(changes))], new_job, monkeypatch)


def test_export_asks_for_no_metrics_and_is_found_by_its_run(
    new_job: Callable[..., Job], mlflow_server: Mlflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, send, asked = new_job("metrics"), requests.Session.send, list[str]()
    client = mlflow.MlflowClient(mlflow_server.uri)
    client.log_metric(job.run_id, "loss", 1.0)
    client.log_param(job.run_id, "lr", 0.1)

    def noting(session: requests.Session, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        asked.append(str(request.path_url))
        return send(session, request, **options)

    monkeypatch.setattr(requests.Session, "send", noting)

    record = job.publish()

    assert not [path for path in asked if "/metrics/" in path]
    assert record.uri is not None
    model = client.get_logged_model(record.uri.rpartition("/")[2])
    assert (str(model.status), model.name, model.params) == ("READY", "model", {"lr": "0.1"})
    assert mlflow.models.get_model_info(f"runs:/{job.run_id}/model").model_id == model.model_id


def test_start_that_was_given_up_registers_nothing(new_job: Callable[..., Job]) -> None:
    job = new_job("given-up")

    def superseded() -> None:
        raise SupersededError

    with pytest.raises(SupersededError):
        job.publish(confirm=superseded)

    assert job.versions() == []
    job.check(job.publish())


def test_starts_that_register_at_the_same_moment_agree_on_one_version(
    new_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    job, register = new_job("at-once"), mlflow.register_model
    other: list[ModelRecord] = []

    def meanwhile(*args: Any, **options: Any) -> Any:
        monkeypatch.setattr(mlflow, "register_model", register)
        other.append(job.publish())
        return register(*args, **options)

    monkeypatch.setattr(mlflow, "register_model", meanwhile)

    first = job.publish()

    (version,) = job.versions()
    assert {one.registered for one in (first, *other)} == {f"at-once/{version['version']}"}
    assert job.models() == [first.uri] == [one.uri for one in other]


def test_attempt_with_other_weights_takes_the_place_of_one_that_was_lost(
    new_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = new_job("other-weights")
    job.publish()

    job.check(job.publish(seed=1))

    assert job.versions()[0]["version"] == "2"


def test_exports_of_a_job_under_one_name_are_versions_of_it(new_job: Callable[..., Job]) -> None:
    job = new_job("both")
    first = job.publish()
    job.export = "2"

    second = job.publish()

    assert (first.registered, second.registered) == ("both/1", "both/2")
    assert len(job.versions()) == len(job.models()) == 2
