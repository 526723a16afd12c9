"""The statistics of the whole training set, in the place of running ones, before a model is exported."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save
from torch import nn

from syncnorm import norm
from syncnorm.trainer.data.loader import Batch
from syncnorm.trainer.storage.atomic_files import write_atomic

logger = logging.getLogger(__name__)

FILE = "population.safetensors"
"""Beside the running statistics of each step: `{layer}.mean` and `{layer}.var`, float64."""


def population_statistics(
    network: nn.Module, batches: Iterable[Batch], estimator: Literal["pooled", "paper", "none"], device: torch.device
) -> norm.PopulationStatistics | None:
    """Put population in the place of running statistics, where there are any. Entered by every rank."""
    if estimator == "none" or not norm.snapshot(network):
        return None
    return norm.recompute_population_statistics(network, (batch.x.to(device) for batch in batches), estimator=estimator)


def keep(found: norm.PopulationStatistics, folder: Path) -> None:
    """In a file for the run's artifacts, and in a line for the job's logs; frozen statistics stayed as they were."""
    if not found.layers:
        return
    tensors = {
        f"{path}.{name}": getattr(layer, name) for path, layer in found.layers.items() for name in ("mean", "var")
    }
    write_atomic(folder / FILE, save({name: tensor.contiguous() for name, tensor in tensors.items()}))
    worst = max(found.layers, key=lambda path: found.layers[path].drift)
    logger.info(
        "population statistics of %d samples; running means were off most, by %.2g standard deviations, in %s",
        found.num_samples,
        found.layers[worst].drift,
        worst,
    )


def as_facts(found: norm.PopulationStatistics) -> dict[str, Any]:
    """For the certificate: by layer, what `norm.LayerPopulation` says."""
    return {
        "estimator": found.estimator,
        "batches": found.num_batches,
        "samples": found.num_samples,
        **{
            what: {path: getattr(layer, what) for path, layer in found.layers.items()}
            for what in ("mean_abs", "var_mean", "drift")
        },
    }
