"""The statistics that validate better are exported, or those that the spec names."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from syncnorm import norm
from syncnorm.trainer.export.statistics.statistics_choice import Scores, choose_statistics, compare_scores

SCORE = "val/accuracy"


def scores(accuracy: float, loss: float) -> Scores:
    return {SCORE: accuracy, "val/loss": loss}


@pytest.mark.parametrize(
    ("running", "population", "used", "why"),
    [
        (scores(0.5, 1.0), scores(0.6, 2.0), "population", "val/accuracy is 0.6 with population statistics"),
        (scores(0.6, 1.0), scores(0.5, 0.5), "running", r"0.6 with running ones \(-0.1\)"),
        (scores(0.5, 1.0), scores(0.5, 0.9), "population", r"val/loss is 0.9 .* \(-0.1\)"),
        (scores(0.5, 1.0), scores(0.5, 1.1), "running", "val/loss"),
        (scores(0.5, 1.0), scores(0.5, 1.0), "population", r"\(\+0\)"),
        (scores(0.5, 1.0), scores(math.nan, math.nan), "running", "nan"),
        (scores(math.nan, math.nan), scores(math.nan, math.nan), "population", "there is no validation"),
    ],
)
def test_better_statistics_are_told_by_score_then_loss(
    running: Scores, population: Scores, used: str, why: str
) -> None:
    found, said = compare_scores(running, population, SCORE)

    assert found == used
    assert re.search(why, said), said


class Trained:
    """A network whose running statistics are those of nobody, with a score that tells which it uses."""

    def __init__(self, likes: Literal["running", "population"]) -> None:
        self.network = nn.Sequential(nn.BatchNorm1d(2))
        self.layer: Any = self.network[0]
        self.layer.running_mean.fill_(7.0)
        self.likes = likes

    @property
    def uses(self) -> str:
        return "running" if float(self.layer.running_mean[0]) == 7.0 else "population"

    def validate(self) -> Scores:
        return scores(0.9 if self.uses == self.likes else 0.1, 1.0)

    def recompute(self) -> norm.PopulationStatistics:
        return norm.recompute_population_statistics(self.network, list(batches()))


def batches() -> Iterator[Tensor]:
    yield torch.tensor([[1.0, 2.0], [3.0, 4.0]])


@pytest.mark.parametrize("wanted", ["auto", "running", "population"])
@pytest.mark.parametrize("likes", ["running", "population"])
def test_network_is_left_with_the_chosen_statistics(wanted: Any, likes: Any) -> None:
    trained = Trained(likes)

    choice = choose_statistics(trained.network, wanted, trained.recompute, trained.validate, SCORE)

    expected = likes if wanted == "auto" else wanted
    assert choice.used == trained.uses == expected
    assert choice.scores[SCORE] == (0.9 if expected == likes else 0.1)
    assert choice.population is not None
    facts = choice.as_facts()
    assert facts["validation"] == {
        "running": trained_scores(likes == "running"),
        "population": trained_scores(likes == "population"),
    }
    assert facts["statistics"]["used"] == expected
    assert "val/accuracy is " in facts["statistics"]["why"]


def trained_scores(is_liked: bool) -> Scores:
    return scores(0.9 if is_liked else 0.1, 1.0)


def test_without_population_statistics_the_running_ones_stay() -> None:
    trained = Trained("running")

    choice = choose_statistics(trained.network, "auto", lambda: None, trained.validate, SCORE)

    assert (choice.used, choice.population, trained.uses) == ("running", None, "running")
    assert choice.scores[SCORE] == 0.9
