"""A user's LightningModule inside the trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from syncnorm.trainer.contract.spec_reader import read_spec
from syncnorm.trainer.data import DataInfo, build_data
from syncnorm.trainer.data.loader import Batch
from syncnorm.trainer.training import checkpoints
from syncnorm.trainer.training.module import TrainingModule
from syncnorm.trainer.training.user_module import training_loss
from tests.helpers.norm.pool import Pool
from tests.helpers.trainer.own_code import Manual, OwnLoss, OwnOptimizer
from tests.helpers.trainer.ranks import RecordingReporter, train

INFO = DataInfo("classification", 10, (1, 8, 8))
JOB: dict[str, Any] = {
    "name": "own",
    "model": {"class_path": "tests.helpers.trainer.own_code.OwnLoss", "init_args": {"logs": True}},
    "data": {"name": "digits", "batch_size": 250},
    "train": {"epochs": 2, "precision": "64-true"},
}


def _batch(samples: int) -> Batch:
    return Batch((torch.randn(samples, 1, 8, 8), torch.arange(samples) % 10), weight=1.0)


@pytest.mark.parametrize("gives", ["tensor", "dict"])
def test_its_training_step_gives_the_loss(gives: str) -> None:
    torch.manual_seed(0)
    own, batch = OwnLoss(factor=3.0, gives=gives), _batch(4)

    loss = training_loss(own, batch, 0)

    expected = 3 * torch.nn.functional.cross_entropy(own(batch.x), batch.y)
    torch.testing.assert_close(loss, expected)  # fp32


def test_an_empty_part_has_a_loss_of_zero_that_reaches_the_model() -> None:
    own = OwnLoss().eval()

    loss = training_loss(own, _batch(0), 0)
    loss.backward()

    assert loss.item() == 0.0
    assert all(param.grad is not None for param in own.parameters())


def test_a_step_without_a_loss_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^model.class_path: OwnLoss.training_step must return a loss.*got dict"):
        training_loss(OwnLoss(gives="nothing"), _batch(4), 0)


def test_manual_optimization_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^model.class_path: Manual must leave optimizer steps to the trainer"):
        TrainingModule(Manual(), INFO, read_spec(JOB), 1)


@pytest.mark.parametrize(("own", "kind", "lr"), [(OwnLoss(), "SGD", 0.1), (OwnOptimizer(), "Adam", 0.25)])
def test_its_optimizer_is_used_where_it_defines_one(own: OwnLoss, kind: str, lr: float) -> None:
    configured: Any = TrainingModule(own, INFO, read_spec(JOB), 1).configure_optimizers()

    optimizer = configured["optimizer"] if isinstance(configured, dict) else configured
    assert (type(optimizer).__name__, optimizer.param_groups[0]["lr"]) == (kind, lr)


def test_what_it_logs_is_the_mean_over_all_samples_of_all_ranks(ranks: Pool, tmp_path: Path) -> None:
    job = JOB | {"model": {"class_path": "tests.helpers.trainer.own_code.Talks"}, "resources": {"workers": 2}}
    data = build_data(read_spec(job).data, 0)
    labels = {stage: [int(y) for _, y in samples] for stage, samples in (("train", data.train), ("val", data.val))}

    both = ranks.run(train, 2, str(tmp_path), job)

    metrics = both[0].metrics
    assert metrics["own/label"] == pytest.approx(sum(labels["train"]) / len(labels["train"]), rel=1e-12)
    assert metrics["own/val_label"] == pytest.approx(sum(labels["val"]) / len(labels["val"]), rel=1e-12)
    assert (metrics["own/two"], metrics["own_odd"]) == (2.0, 1.0)
    assert both[1].metrics == metrics
    assert "own/val_label" in (tmp_path / "metrics.jsonl").read_text()


def test_what_it_logged_before_a_pause_counts(ranks: Pool, tmp_path: Path) -> None:
    job = JOB | {"model": {"class_path": "tests.helpers.trainer.own_code.Talks"}, "resources": {"workers": 2}}
    whole = ranks.run(train, 2, str(tmp_path / "whole"), job)[0]

    ranks.run(train, 2, str(tmp_path / "1"), job, None, RecordingReporter(stop_at=1))
    newest = checkpoints.newest([tmp_path / "1" / "checkpoints"])
    assert newest is not None
    resumed = ranks.run(train, 2, str(tmp_path / "2"), job, str(newest.path))[0]

    assert resumed.metrics == whole.metrics


def test_two_workers_train_it_as_one_does_with_the_large_batch(ranks: Pool, tmp_path: Path) -> None:
    on_two = JOB | {"data": {"name": "digits", "batch_size": 125}, "resources": {"workers": 2}}

    two = ranks.run(train, 2, str(tmp_path / "two"), on_two)[0]
    one = ranks.run(train, 1, str(tmp_path / "one"), JOB)[0]

    assert one.metrics.keys() >= {"train/loss", "val/loss", "val/accuracy"}
    assert "train/accuracy" not in one.metrics
    for name, tensor in one.state.items():
        torch.testing.assert_close(two.state[name], tensor, rtol=1e-9, atol=1e-9)  # fp64
