"""Which statistics batch normalizations are exported with: the running ones, or those of the whole training set."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from syncnorm import norm
from syncnorm.trainer.export.statistics.population import as_facts

logger = logging.getLogger(__name__)

Used = Literal["running", "population"]
Scores = Mapping[str, float]
LOSS = "val/loss"
LOWER_IS_BETTER = (LOSS, "val/mae", "val/rmse")


@dataclass(frozen=True, eq=False)
class StatisticsChoice:
    """used: by the network from now on. scores: of its validation with these; empty without a validation of ours."""

    used: Used
    why: str
    population: norm.PopulationStatistics | None
    validation: Mapping[str, Scores]

    @property
    def scores(self) -> Scores:
        return self.validation.get(self.used, {})

    def as_facts(self) -> dict[str, Any]:
        """The facts for the certificate."""
        return {
            "statistics": {"used": self.used, "why": self.why},
            "population": as_facts(self.population) if self.population else None,
            "validation": {name: dict(scores) for name, scores in self.validation.items()},
        }


def choose_statistics(
    network: nn.Module,
    wanted: Literal["auto", "running", "population"],
    recompute: Callable[[], norm.PopulationStatistics | None],
    validate: Callable[[], Scores],
    score: str,
) -> StatisticsChoice:
    """Leave the network with the wanted statistics; `auto` takes those that validate better. Entered by every rank.

    recompute: replaces the running statistics, or gives None where there are none to replace. score: the one to compare
    models by, higher is better unless it is in LOWER_IS_BETTER.
    """
    before, buffers = validate(), {name: buffer.clone() for name, buffer in network.named_buffers()}
    population = recompute()
    if population is None:
        why = (
            "there are no population statistics: the network has none, or frozen ones, or statistics.population is none"
        )
        return StatisticsChoice("running", why, None, {"running": before, "population": before})
    after = validate()
    better, why = compare_scores(before, after, score)
    used: Used = better if wanted == "auto" else wanted
    if used == "running":
        _restore(network, buffers)
    why = f"better by validation: {why}" if wanted == "auto" else f"export.statistics says so; {why}"
    logger.info("exporting with %s statistics; %s", used, why)
    return StatisticsChoice(used, why, population, {"running": before, "population": after})


def statistics_of_average(
    recompute: Callable[[], norm.PopulationStatistics | None], validate: Callable[[], Scores]
) -> StatisticsChoice:
    """Leave the network, which has averaged weights, with statistics of its own. Entered by every rank."""
    population = recompute()
    if population is None:
        return StatisticsChoice(
            "running", "the network keeps no statistics, or has them frozen", None, {"running": validate()}
        )
    why = f"recomputed for the averaged weights over {population.num_samples} samples"
    logger.info("exporting with population statistics, %s", why)
    return StatisticsChoice("population", why, population, {"population": validate()})


def compare_scores(running: Scores, population: Scores, score: str) -> tuple[Used, str]:
    """The statistics with the better score, or with the lower loss if the score is the same, and by how much."""
    if all(math.isnan(scores[LOSS if LOSS in scores else score]) for scores in (running, population)):
        return "population", "there is no validation to compare them by"
    name = score if running[score] != population[score] or LOSS not in running else LOSS
    gain = population[name] - running[name]
    is_better = gain <= 0 if name in LOWER_IS_BETTER else gain > 0
    values = f"{population[name]:.6g} with population statistics, {running[name]:.6g} with running ones"
    return "population" if is_better else "running", f"{name} is {values} ({gain:+.2g})"


@torch.no_grad()
def _restore(network: nn.Module, buffers: Mapping[str, torch.Tensor]) -> None:
    for name, buffer in network.named_buffers():
        buffer.copy_(buffers[name])
