"""Two workers train one model: the one that a single worker with the whole batch trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.norm.pool import Pool
from tests.trainer.ranks import place
from trainer.attempt import Launch
from trainer.conversion import convert
from trainer.data import build_data
from trainer.fit import Loaders, fit, total_steps
from trainer.folders import AttemptFolders
from trainer.models import build_model
from trainer.module import TrainingModule
from trainer.reporter import Reporter
from trainer.spec_reader import read_spec


def spec(workers: int, **changes: Any) -> dict[str, Any]:
    return {
        "name": "two-workers",
        "model": {"name": "resnet", "init_args": {"depth": 8, "width": 4}},
        # 1,438 training samples: the last batch of an epoch is smaller, and not even divisible by two.
        "data": {"name": "digits", "batch_size": 250 // workers},
        "norm": {"kind": "sync_batch"},
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4},
        "train": {"epochs": 2, "precision": "64-true", "checkpoint_every": {"epochs": 2}},
        "resources": {"workers": workers},
    } | changes


def train(
    rank: int, world_size: int, root: str, document: dict[str, Any]
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Train as a worker does; this rank's tensors and the last metrics."""
    job = read_spec(document)
    launch = Launch(
        job_id="j",
        attempt=1,
        fence="f",
        spec=job,
        service_url=None,
        token=None,
        mlflow_uri="",
        mlflow_run_id="",
        resume_from=None,
    )
    torch.manual_seed(job.seed)
    data = build_data(job.data, job.seed)
    network, _ = convert(build_model(job.model, job.norm, data.info), job, None)
    loaders = Loaders.build(data, job, rank, world_size)
    steps = total_steps(job.train, len(loaders.train))
    module = TrainingModule(network, data.info, job, steps)
    folders = AttemptFolders(Path(root))
    fitted = fit(module, loaders, launch, folders, Reporter(launch, rank), place(rank, world_size), steps)
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}, fitted.metrics


def test_both_ranks_hold_the_same_weights_and_running_statistics(ranks: Pool, tmp_path: Path) -> None:
    (first, metrics), (second, same_metrics) = ranks.run(train, 2, str(tmp_path), spec(2))

    assert any("running_var" in name for name in first)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert metrics["train/loss"] == same_metrics["train/loss"]


def test_two_workers_equal_one_with_the_large_batch(ranks: Pool, tmp_path: Path) -> None:
    ((two, metrics), _) = ranks.run(train, 2, str(tmp_path / "two"), spec(2))
    ((one, metrics_of_one),) = ranks.run(train, 1, str(tmp_path / "one"), spec(1))

    # fp64: 12 steps of momentum SGD amplify rounding of 1e-16 by some orders, nothing more.
    for name in one:
        torch.testing.assert_close(
            two[name], one[name], rtol=1e-9, atol=1e-9, msg=lambda text, at=name: f"{at}: {text}"
        )
    assert metrics["train/loss"] == pytest.approx(metrics_of_one["train/loss"], rel=1e-6)  # summed in fp32
    assert metrics["val/accuracy"] == metrics_of_one["val/accuracy"]


def test_batch_statistics_of_each_worker_alone_do_not_equal_the_large_batch(ranks: Pool, tmp_path: Path) -> None:
    local = {"norm": {"kind": "batch"}}
    ((two, _), _) = ranks.run(train, 2, str(tmp_path / "two"), spec(2, **local))
    ((one, _),) = ranks.run(train, 1, str(tmp_path / "one"), spec(1, **local))

    assert not torch.allclose(two["conv1.weight"], one["conv1.weight"], rtol=1e-3)
