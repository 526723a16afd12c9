"""A job whose export fails, or is not possible, succeeds with its weights in a real MLflow."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import lightning.pytorch as pl
import pytest
import torch
from safetensors.torch import load
from torch import Tensor, nn
from torch.testing import assert_close

from syncnorm import norm
from syncnorm.trainer.contract.protocol import Launch, Result
from syncnorm.trainer.contract.spec_reader import read_spec
from syncnorm.trainer.driver import single_process
from syncnorm.trainer.errors import RankFailedError
from syncnorm.trainer.storage.atomic_files import write_atomic
from syncnorm.trainer.storage.attempt_layout import AttemptFolders
from syncnorm.trainer.worker.finalize import finalize_user_module
from syncnorm.trainer.worker.fit import FitResult
from tests.helpers.trainer.few_digits import few_digits
from tests.helpers.trainer.own_code import Branches
from tests.helpers.trainer.ranks import launch_of
from tests.trainer.conftest import Mlflow
from tests.trainer.worker.test_finalize import logged_models

# Exporters and MLflow warn about their own internals.
pytestmark = pytest.mark.filterwarnings("ignore")

BRANCHES: dict[str, Any] = {
    "name": "branches",
    "model": {"class_path": "tests.helpers.trainer.own_code.Branches"},
    "data": {"name": "digits", "batch_size": 64},
    "train": {"epochs": 2, "keep_best": {"monitor": "val/loss"}},
}


@dataclass(frozen=True)
class Job:
    """One attempt that trains in this process. run: its MLflow run."""

    server: Mlflow
    folder: Path
    run: str

    def launch(self, document: dict[str, Any]) -> Launch:
        made = launch_of(document)
        where = {"mlflow_uri": self.server.uri, "mlflow_run_id": self.run}
        return made.model_copy(update={**where, "spec": read_spec(document)})

    def train(self, attempt: int = 1, **export: Any) -> Result:
        launch = self.launch(BRANCHES | {"export": export}).model_copy(update={"attempt": attempt})
        (self.folder / "launch.json").write_text(launch.model_dump_json())
        config = {"folder": str(self.folder), "resume_from": None, "patience_s": 0.0}
        return Result.model_validate(single_process.train(config))

    def artifact(self, path: str) -> bytes | None:
        answer = httpx.get(f"{self.server.uri}/get-artifact", params={"path": path, "run_uuid": self.run}, timeout=60)
        return answer.content if answer.is_success else None

    def tags(self) -> dict[str, str]:
        answer = httpx.get(f"{self.server.uri}/api/2.0/mlflow/runs/get", params={"run_id": self.run}, timeout=60)
        return {tag["key"]: tag["value"] for tag in answer.json()["run"]["data"]["tags"]}


@pytest.fixture(autouse=True)
def data() -> Iterator[None]:
    with few_digits():
        yield


@pytest.fixture
def job(mlflow_server: Mlflow, tmp_path: Path) -> Job:
    return Job(mlflow_server, tmp_path, mlflow_server.new_run())


@pytest.mark.parametrize(("export", "state"), [({}, "failed"), ({"formats": []}, "skipped")])
def test_network_that_torch_export_refuses_trains_and_has_its_weights_published(
    job: Job, export: dict[str, Any], state: str
) -> None:
    before = logged_models(job.server)

    result = job.train(**export)

    assert result.outcome == "succeeded"
    assert (result.model, result.export and result.export.state) == (None, state)
    assert result.export is not None
    assert "out.mean() > 0" in result.export.message
    weights = job.artifact("export/weights.safetensors")
    assert weights is not None
    Branches().load_state_dict(load(weights))
    assert json.loads(job.artifact("export/model.json") or b"")["model"]["class_path"].endswith("Branches")
    assert job.artifact("export/certificate.json") is None
    assert logged_models(job.server) == before
    assert job.tags()["syncnorm.export_state"] == state
    assert result.metrics["val/accuracy"] > 0.5


def test_export_that_is_required_fails_the_job_with_its_weights_in_the_run(job: Job) -> None:
    with pytest.raises(RankFailedError, match=r"export_mismatch.*out\.mean"):
        job.train(required=True)

    assert job.artifact("export/weights.safetensors") is not None


def test_best_checkpoint_is_published_where_the_spec_says_so(job: Job, tmp_path: Path) -> None:
    result = job.train(formats=[], checkpoint="best", statistics="running")

    weights = load(job.artifact("export/weights.safetensors") or b"")
    states = {path.name: torch.load(path / "state.pt") for path in (tmp_path / "checkpoints").iterdir()}
    best = states[max(states)]["callbacks"]["CheckpointWriter"]["best"][1]
    saved = states[f"step-{best:010d}"]["state_dict"]
    assert_close(weights, {name.removeprefix("network."): tensor for name, tensor in saved.items()}, rtol=0, atol=0)
    assert result.outcome == "succeeded"


@pytest.mark.parametrize(("lost", "left", "is_tried"), [(1, [], True), (2, [], False), (2, ["result.json"], True)])
def test_job_whose_attempts_die_while_they_export_succeeds_without(
    mlflow_server: Mlflow, tmp_path: Path, lost: int, left: list[str], is_tried: bool
) -> None:
    for number in range(1, lost + 1):  # an attempt leaves its weights before it tries
        for name in ("export/model.json", *left):
            write_atomic(tmp_path / str(number) / name, b"{}")
    (tmp_path / str(lost + 1)).mkdir()
    job = Job(mlflow_server, tmp_path / str(lost + 1), mlflow_server.new_run())

    result = job.train(attempt=lost + 1, formats=[])

    assert result.outcome == "succeeded"
    assert result.export is not None
    assert ("out.mean() > 0" in result.export.message) is is_tried
    assert ("2 attempts ended while they exported" in result.export.message) is not is_tried
    assert job.artifact("export/weights.safetensors") is not None


class Contrastive(pl.LightningModule):
    """Trains a projection behind its backbone, which alone is its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(6, 8), norm.build("sync_batch", 8, dims=1), nn.ReLU())
        self.proj = nn.Sequential(nn.Linear(8, 4), norm.build("sync_batch", 4, dims=1))

    def forward(self, x: Tensor) -> Any:
        return self.backbone(x)


class NoForward(Contrastive):
    forward = pl.LightningModule.forward


def views() -> list[Any]:
    """Batches of two views of the same samples, with labels."""
    generator = torch.Generator().manual_seed(0)
    return [[[torch.randn(4, 6, generator=generator) for _ in range(2)], torch.arange(4)] for _ in range(3)]


def broken() -> Any:
    raise OSError("the images are gone")
    yield


Finalize = Callable[..., Result]


@pytest.fixture
def finalized(job: Job) -> Finalize:
    def run(own: pl.LightningModule, batches: Any, training: Any = (), **export: Any) -> Result:
        folders = AttemptFolders(job.folder)
        write_atomic(folders.artifacts / "spec.yaml", b"")
        launch = job.launch(BRANCHES | {"export": export})
        return finalize_user_module(own, batches, launch, folders, FitResult(3, {"own": 1.0}, None), training)

    return run


def test_normalization_outside_of_forward_gives_no_certificate(job: Job, finalized: Finalize) -> None:
    module = Contrastive()

    result = finalized(module, views())

    assert result.export is not None
    assert (result.export.state, result.export.reason) == ("skipped", "layers_outside")
    said = "proj.1 never runs in it. Set export.module to the submodule you want to use (backbone)."
    assert said in result.export.message
    assert job.artifact("export/certificate.json") is None
    published = load(job.artifact("export/weights.safetensors") or b"")
    assert_close(published, dict(module.state_dict()), rtol=0, atol=0)


def test_submodule_is_certified_and_the_whole_module_published(job: Job, finalized: Finalize) -> None:
    module = Contrastive()

    result = finalized(module, views(), module="backbone", formats=["pt2"])

    assert result.export is not None
    assert result.export.state == "certified", result.export
    assert result.model is not None
    proof = result.model.certificate
    assert (proof["module"], proof["statistics"]["used"]) == ("backbone", "running")
    assert proof["statistics"]["why"].startswith("running only, because the validation of a LightningModule")
    assert {check["samples"] for check in proof["checks"] if check["inputs"] == "held_out"} == {12}
    assert sorted(load(job.artifact("export/weights.safetensors") or b"")) == sorted(module.state_dict())
    assert (result.metrics, result.step) == ({"own": 1.0}, 3)


def test_part_of_a_module_without_forward_is_certified(job: Job, finalized: Finalize) -> None:
    result = finalized(NoForward(), views(), module="backbone")

    assert result.export is not None
    assert result.export.state == "certified", result.export
    assert result.model is not None
    proof = result.model.certificate
    assert proof["module"] == "backbone"
    assert {check["runtime"] for check in proof["checks"]} == {"eager", "torch.export", "onnxruntime", "mlflow.pyfunc"}
    assert {check["samples"] for check in proof["checks"] if check["inputs"] == "held_out"} == {12}


def test_part_that_takes_no_part_of_a_batch_is_named(finalized: Finalize) -> None:
    result = finalized(NoForward(), [{"a": torch.ones(2, 3), "b": torch.ones(2, 3)}], module="backbone")

    assert result.export is not None
    assert (result.export.state, result.export.reason) == ("skipped", "inputs_unclear")
    assert "Sequential.forward takes" in result.export.message
    assert "set example_input_array" in result.export.message


def test_population_statistics_of_a_module_are_taken_from_its_training_batches(job: Job, finalized: Finalize) -> None:
    module, given = Contrastive(), [{"x": first, "label": label} for (first, _), label in views()]
    inputs = torch.cat([module.backbone[0](batch["x"]) for batch in given])

    result = finalized(module, views(), given, module="backbone", formats=[], statistics="population")

    assert result.export is not None
    assert result.export.state == "certified", result.export
    published = load(job.artifact("export/weights.safetensors") or b"")
    assert_close(published["backbone.1.running_mean"], inputs.mean(0).detach())
    assert_close(published["proj.1.running_mean"], torch.zeros(4))  # which forward does not reach
    assert result.model is not None
    assert result.model.certificate["statistics"]["used"] == "population"


def test_population_statistics_that_are_not_to_be_had_are_no_secret(finalized: Finalize) -> None:
    result = finalized(Contrastive(), views(), module="backbone", statistics="population")

    assert result.export is not None
    assert (result.export.state, result.export.reason) == ("failed", "not_exportable")
    assert "export.statistics: there is no training batch" in result.export.message


@pytest.mark.parametrize(
    ("module", "batches", "state", "reason", "sentence"),
    [
        (NoForward, views(), "skipped", "no_forward", "NoForward defines no forward."),
        (Contrastive, [{"a": torch.ones(2, 3), "b": torch.ones(2, 3)}], "skipped", "inputs_unclear", "dict with a, b"),
        (Contrastive, [], "skipped", "inputs_unclear", "there is no batch"),
        (Contrastive, broken(), "failed", "user_error", "the images are gone"),
    ],
)
def test_module_without_an_export_is_published_all_the_same(
    job: Job, finalized: Finalize, module: Any, batches: Any, state: str, reason: str, sentence: str
) -> None:
    result = finalized(module(), batches)

    assert result.outcome == "succeeded"
    assert result.export is not None
    assert (result.export.state, result.export.reason) == (state, reason)
    assert sentence in result.export.message
    assert job.artifact("export/weights.safetensors") is not None
