"""Population statistics are kept: tensors for the run, numbers for the certificate."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from syncnorm import norm
from syncnorm.trainer.data.loader import Batch
from syncnorm.trainer.export.statistics.population import FILE, as_facts, keep, population_statistics

CPU = torch.device("cpu")


def found(kind: str) -> norm.PopulationStatistics:
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(64, 3, 4, 4, generator=generator) * 2 + 5
    network = nn.Sequential(norm.build(kind, 3))
    result = population_statistics(network, [Batch((samples, torch.zeros(64)), 1.0)], "pooled", CPU)
    assert result is not None
    return result


def test_population_is_kept_as_tensors_and_told_as_numbers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    population = found("sync_batch")

    with caplog.at_level(logging.INFO, "syncnorm.trainer.export.statistics.population"):
        keep(population, tmp_path)

    tensors, facts = load_file(tmp_path / FILE), as_facts(population)
    assert torch.equal(tensors["0.mean"], population.layers["0"].mean)
    assert torch.equal(tensors["0.var"], population.layers["0"].var)
    assert (facts["samples"], facts["estimator"]) == (64, "pooled")
    # 1,024 draws a channel: a mean is good to 2 / 32, a variance to 4 * sqrt(2 / 1,024); three times that is allowed.
    assert facts["mean_abs"]["0"] == pytest.approx(5.0, abs=0.2)
    assert facts["var_mean"]["0"] == pytest.approx(4.0, abs=0.55)
    assert facts["drift"]["0"] == pytest.approx(
        5.0, abs=0.2
    )  # from a running mean of 0, in running standard deviations of 1
    assert "population statistics of 64 samples; running means were furthest off, by 5 " in caplog.text


def test_layers_that_never_ran_leave_nothing_to_keep(tmp_path: Path) -> None:
    keep(norm.PopulationStatistics("pooled", 1, 64, {}), tmp_path)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("kind", "estimator"), [("group", "pooled"), ("frozen_batch", "pooled"), ("batch", "none")])
def test_nothing_is_computed_where_there_is_nothing_or_nobody_asks(
    kind: str, estimator: Literal["pooled", "none"]
) -> None:
    network = nn.Sequential(norm.build(kind, 32))

    assert population_statistics(network, [], estimator, CPU) is None
