"""The training of a job on a CUDA device, without Ray: precisions, compilation, resuming, and what follows training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from syncnorm import norm
from syncnorm.trainer.contract.spec_reader import read_spec
from syncnorm.trainer.data import build_data
from syncnorm.trainer.export.statistics.population import population_statistics
from syncnorm.trainer.models import build_model
from syncnorm.trainer.ranks.rank_context import RankContext
from syncnorm.trainer.ranks.replica_check import check_agreement
from syncnorm.trainer.training import checkpoints
from syncnorm.trainer.training.evaluation import evaluate
from syncnorm.trainer.training.tasks.task import Task
from syncnorm.trainer.worker.module_and_data import Loaders
from tests.helpers.trainer.ranks import PoolEnvironment, RecordingReporter, TrainedModel, train

pytestmark = pytest.mark.usefixtures("nccl")

LEARNED = 0.6
"""Four epochs come to 0.79 to 0.91 on CPUs, guessing to 0.1."""


@pytest.fixture
def _deterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """cuDNN may otherwise pick kernels that add in any order."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    yield


def document(kind: str = "sync_batch", **train_changes: Any) -> dict[str, Any]:
    return {
        "name": "gpu",
        "model": {"name": "cnn", "init_args": {"channels": [8, 16], "dropout": 0.2}},
        "data": {"name": "digits", "batch_size": 32},
        "norm": {"kind": kind},
        "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9},
        "train": {"epochs": 4, "checkpoint_every": {"steps": 20}} | train_changes,
        "statistics": {"every": {"steps": 20}},
        "resources": {"workers": 1, "gpus_per_worker": 1},
    }


def run(root: Path, job: dict[str, Any], **how: Any) -> TrainedModel:
    where = RankContext(0, 1, torch.device("cuda", 0), PoolEnvironment(0, 1))
    return train(0, 1, str(root), job, where=where, **how)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed", "64-true"])
def test_learns_digits_in_every_precision(tmp_path: Path, precision: str) -> None:
    trained = run(tmp_path, document(precision=precision))

    assert trained.metrics["val/accuracy"] > LEARNED
    assert all(tensor.isfinite().all() for tensor in trained.state.values())


@pytest.mark.parametrize("kind", ["batch", "sync_batch_renorm", "group", "weight_standardization", "filter_response"])
def test_other_kinds_learn_too(tmp_path: Path, kind: str) -> None:
    assert run(tmp_path, document(kind, precision="bf16-mixed")).metrics["val/accuracy"] > LEARNED


def test_compiled_network_learns(tmp_path: Path) -> None:
    assert run(tmp_path, document(compile=True)).metrics["val/accuracy"] > LEARNED


@pytest.mark.usefixtures("_deterministic")
@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
def test_resumed_job_goes_on_bit_for_bit(tmp_path: Path, precision: str) -> None:
    job = document(precision=precision)
    whole = run(tmp_path / "whole", job)

    stopped = run(tmp_path / "cut", job, told=RecordingReporter(stop_at=27))
    newest = checkpoints.newest([tmp_path / "cut" / "checkpoints"])
    assert newest is not None
    resumed = run(tmp_path / "resumed", job, resume_from=str(newest.path))

    assert stopped.stopped_at is not None
    for name, tensor in whole.state.items():
        assert torch.equal(tensor, resumed.state[name]), name


def test_what_follows_training_runs_on_the_gpu_and_on_the_cpu() -> None:
    job = read_spec(document())
    data = build_data(job.data, job.seed)
    scores = []
    for device in (torch.device("cuda", 0), torch.device("cpu")):
        torch.manual_seed(0)
        network = norm.convert(build_model(job.model, job.norm, data.info), "sync_batch")[0].to(device)
        loaders = Loaders.build(data, job, 0, 1)

        population = population_statistics(network, loaders.train, "pooled", device)

        assert population is not None
        assert check_agreement(network)["ranks"] == 1
        scores.append(evaluate(network, Task(data.info), loaders.val, device))
    assert scores[0] == pytest.approx(scores[1], rel=1e-3)  # convolutions on the GPU may use tf32
