"""Reports about metrics over several ranks. Each job ends, and its value is that of one process over all samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torchmetrics import CosineSimilarity
from torchmetrics.retrieval import RetrievalMRR

from tests.helpers.norm.pool import Pool
from tests.helpers.trainer import own_modules
from tests.helpers.trainer.own_module_jobs import job
from tests.helpers.trainer.ranks import train

MODULES = "tests.helpers.trainer.reported_modules"


def reported(name: str, **options: Any) -> dict[str, Any]:
    document = job("Hooks", workers=2, train={"epochs": 1})
    document["model"]["class_path"] = f"{MODULES}.{name}"
    document["data"]["init_args"] = options
    return document


def points(samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    data = own_modules.Points(samples=samples)
    data.setup("fit")
    x, y = zip(*data.points, strict=True)  # type: ignore[call-overload]
    return torch.stack(x), torch.stack(y)


# https://github.com/Lightning-AI/torchmetrics/issues/2170
def test_torchmetrics_2170_ranks_with_lists_of_other_lengths(ranks: Pool, tmp_path: Path) -> None:
    document = job("Retrieves", workers=2, train={"epochs": 1})
    document["data"]["init_args"] = {"samples": 33, "batch_size": 10}  # validated as 17 and 16 by 8: 3 items and 2
    x, y = points(33)
    metric = RetrievalMRR()
    metric.update(x[:, 2], y > 0, (10 * x[:, 3]).round().long() + 100)

    for found in ranks.run(train, 2, str(tmp_path), document):
        assert found.metrics["val_rank"] == pytest.approx(float(metric.compute()), rel=1e-6)


# https://github.com/Lightning-AI/torchmetrics/issues/337
def test_torchmetrics_337_metric_with_a_list_is_an_attribute_of_the_module(ranks: Pool, tmp_path: Path) -> None:
    x, _ = points(45)
    metric = CosineSimilarity(reduction="mean")
    metric.update(x, x.flip(1))

    for found in ranks.run(train, 2, str(tmp_path), reported("KeepsCosines", samples=45)):
        assert found.metrics["val_cosine"] == pytest.approx(float(metric.compute()), rel=1e-5)


# https://github.com/Lightning-AI/pytorch-lightning/issues/20223
def test_lightning_20223_metric_computed_at_the_end_of_a_training_epoch(ranks: Pool, tmp_path: Path) -> None:
    _, y = points(44)
    guesses = 1 - y.clamp(max=1)  # what the module tells its metric
    expected = torch.stack([(guesses[y == label] == label).float().mean() for label in range(3)]).mean()

    for found in ranks.run(train, 2, str(tmp_path), reported("ComputesAfterTraining", samples=44)):
        assert found.metrics["train_acc"] == pytest.approx(float(expected), abs=1e-6)
