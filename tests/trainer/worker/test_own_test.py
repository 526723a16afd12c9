"""train.test: a user's test_step runs once training is over, and every sample counts once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from syncnorm.trainer.contract.spec_reader import SpecError, read_spec
from syncnorm.trainer.storage.atomic_files import write_atomic
from syncnorm.trainer.storage.attempt_layout import AttemptFolders
from syncnorm.trainer.worker.finalize import finalize_user_module
from syncnorm.trainer.worker.fit import fit
from syncnorm.trainer.worker.model_inspection import inspect
from tests.helpers.norm.pool import Pool
from tests.helpers.trainer import own_modules
from tests.helpers.trainer.own_module_jobs import job
from tests.helpers.trainer.ranks import RecordingReporter, build, launch_of, rank_context
from tests.trainer.conftest import Mlflow


def job_with_test(name: str = "Tested", data: str = "PointsAndTest", **parts: Any) -> dict[str, Any]:
    document = job(name, data=data, norm={"kind": "sync_batch"}, export={"formats": []}, **parts)
    return document | {"train": {"epochs": 2, "test": True, "keep_best": {"monitor": "val/loss"}}}


Run = tuple[dict[str, float], dict[str, torch.Tensor], torch.Tensor]
"""The metrics of a job, its weights, and the statistics that were tested."""


def train_and_finish(rank: int, world_size: int, root: str, document: dict[str, Any], mlflow: dict[str, str]) -> Run:
    launch = launch_of(document).model_copy(update=mlflow)
    assembly = build(rank, world_size, launch)
    module: Any = assembly.module
    folders = AttemptFolders(Path(root))
    write_atomic(folders.artifacts / "spec.yaml", b"")
    fitted = fit(assembly, launch, folders, RecordingReporter(), rank_context(rank, world_size))  # type: ignore[arg-type]
    result = finalize_user_module(module, fitted.held_out, launch, folders, fitted, fitted.training)
    return result.metrics, dict(module.state_dict()), module.tested_with


def plainly_tested(_rank: int, _world_size: int, weights: dict[str, torch.Tensor]) -> dict[str, float]:
    """What plain Lightning finds on one device with the same weights."""
    module = own_modules.Tested()
    module.load_state_dict(weights, strict=False)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    (found,) = trainer.test(module, datamodule=own_modules.PointsAndTest(), verbose=False)
    return dict(found)


@pytest.fixture
def finished(ranks: Pool, mlflow_server: Mlflow, tmp_path: Path) -> Callable[[dict[str, Any]], list[Run]]:
    """Trains the job of a document with its workers, to its end."""
    mlflow = {"mlflow_uri": mlflow_server.uri, "mlflow_run_id": mlflow_server.new_run()}

    def run(document: dict[str, Any]) -> list[Run]:
        return ranks.run(train_and_finish, document["resources"]["workers"], str(tmp_path), document, mlflow)

    return run


Finished = Callable[[dict[str, Any]], list[Run]]


@pytest.mark.parametrize("workers", [1, 2])
def test_test_on_any_number_of_workers_is_that_of_plain_lightning(
    workers: int, ranks: Pool, finished: Finished
) -> None:
    found = finished(job_with_test(workers=workers))

    metrics, weights, _ = found[0]
    plain = ranks.run(plainly_tested, 1, weights)[0]
    assert {name: metrics[name] for name in plain} == pytest.approx(plain, rel=1e-6)  # means in fp32
    assert metrics["test/accuracy"] == metrics["test_acc"]
    assert metrics["test_right"] == round(13 * metrics["test_mean"])
    assert all(each[0] == metrics for each in found)


def test_run_has_what_the_test_logged(finished: Finished, tmp_path: Path) -> None:
    finished(job_with_test(workers=2))

    spooled = [json.loads(line) for line in AttemptFolders(tmp_path).spool.read_text().splitlines()]
    names = [point["key"] for point in spooled]
    assert {"test_acc", "test/accuracy", "test_right", "test_mean"} <= set(names)
    assert names.count("test_acc") == 1


@pytest.mark.parametrize("which", ["best", "average"])
def test_weights_and_statistics_are_those_that_are_exported(which: str, finished: Finished) -> None:
    document = job_with_test()
    if which == "best":
        document["export"]["checkpoint"] = "best"
    else:
        document["train"]["average"] = {"kind": "ema", "decay": 0.5}

    _, weights, tested = finished(document)[0]

    assert torch.equal(tested, weights["net.1.running_mean"])


def test_module_with_loaders_of_its_own_is_tested(finished: Finished) -> None:
    document = job_with_test("Tests")
    document["train"]["keep_best"]["monitor"] = "train/loss"
    del document["data"]

    metrics, _, _ = finished(document)[0]

    assert metrics["test_right"] <= 13


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("Hooks", "PointsAndTest", "train.test must be left out, because Hooks defines no test_step"),
        ("Tested", "Points", "train.test must be left out, because Points defines no test_dataloader"),
    ],
)
def test_what_is_missing_is_named_before_training(name: str, data: str, said: str) -> None:
    (finding,) = inspect(read_spec(job_with_test(name, data))).findings

    assert said in finding.message
    assert (finding.severity, finding.path) == ("error", "train.test")


def test_built_in_model_has_no_test_of_its_own() -> None:
    document = {"name": "x", "model": {"name": "mlp"}, "data": {"name": "digits", "batch_size": 8}}

    with pytest.raises(SpecError, match=r"train.test"):
        read_spec(document | {"train": {"test": True}})
