"""Replaces running statistics by those of the whole training set before a model is exported."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric.utilities import move_data_to_device
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from syncnorm import norm
from syncnorm.norm.statistics.population import keeps_batch_statistics
from syncnorm.trainer.data.info import Ragged
from syncnorm.trainer.data.loader import Batch
from syncnorm.trainer.export.forward_inputs import ForwardInputs, Unclear, reader_of
from syncnorm.trainer.storage.atomic_files import write_atomic
from syncnorm.trainer.training.tasks.detection.blank_image import accepting_no_image

logger = logging.getLogger(__name__)

FILE = "population.safetensors"
"""File next to the running statistics of each step: `{layer}.mean` and `{layer}.var`, float64."""


def population_statistics(
    network: nn.Module, batches: Iterable[Batch], estimator: Literal["pooled", "paper", "none"], device: torch.device
) -> norm.PopulationStatistics | None:
    """Replace running statistics by population statistics, if there are any. Entered by every rank."""
    if estimator == "none" or not any(map(keeps_batch_statistics, network.modules())):
        return None
    inputs = (_input(network, move_data_to_device(batch.x, device)) for batch in batches)
    with accepting_no_image(network):
        return norm.recompute_population_statistics(network, inputs, estimator=estimator)


def _input(network: nn.Module, x: Tensor | Ragged) -> Any:
    """In a tuple, which norm takes the first part of: a list would be taken for one, too."""
    return (tree_map_only(Tensor, partial(_in_precision_of, network), list(x) if isinstance(x, Ragged) else x),)


def keep(found: norm.PopulationStatistics, folder: Path) -> None:
    """Write them to a file for the run's artifacts, and a line to the job's logs; frozen statistics are unchanged."""
    if not found.layers:
        return
    tensors = {
        f"{path}.{name}": getattr(layer, name) for path, layer in found.layers.items() for name in ("mean", "var")
    }
    write_atomic(folder / FILE, save({name: tensor.contiguous() for name, tensor in tensors.items()}))
    worst = max(found.layers, key=lambda path: found.layers[path].drift)
    logger.info(
        "population statistics of %d samples; running means were furthest off, by %.2g standard deviations, in %s",
        found.num_samples,
        found.layers[worst].drift,
        worst,
    )


def as_facts(found: norm.PopulationStatistics) -> dict[str, Any]:
    """The facts for the certificate: by layer, the fields of `norm.LayerPopulation`."""
    return {
        "estimator": found.estimator,
        "batches": found.num_batches,
        "samples": found.num_samples,
        **{
            what: {path: getattr(layer, what) for path, layer in found.layers.items()}
            for what in ("mean_abs", "var_mean", "drift")
        },
    }


def population_of_module(
    module: nn.Module, batches: Iterable[Any], estimator: Literal["pooled", "paper", "none"]
) -> norm.PopulationStatistics | Unclear | None:
    """The same for a network of any inputs, from batches as its training step gets them. Entered by every rank.

    Layers that do not run in forward keep their running statistics. Unclear: why forward can't be given the batches.
    """
    if estimator == "none" or not any(map(keeps_batch_statistics, module.modules())):
        return None
    remaining = iter(batches)
    first = next(remaining, None)
    if first is None:
        return Unclear("there is no training batch to take population statistics from")
    reader = reader_of(module, first)
    if isinstance(reader, Unclear):
        return reader
    named = (_by_name(module, reader(batch)) for batch in chain([first], remaining))
    return norm.recompute_population_statistics(module, named, estimator=estimator)


def _by_name(module: nn.Module, inputs: ForwardInputs) -> dict[str, Any]:
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    moved = inputs.to(device)
    moved = ForwardInputs(*tree_map_only(Tensor, partial(_in_precision_of, module), (moved.args, moved.kwargs)))
    return inspect.signature(module.forward).bind(*moved.args, **moved.kwargs).arguments


def _in_precision_of(network: nn.Module, tensor: Tensor) -> Tensor:
    """Data are float32; a network trained in 64-true takes doubles."""
    is_double = any(parameter.dtype == torch.float64 for parameter in network.parameters())
    return tensor.double() if is_double and tensor.dtype == torch.float32 else tensor
