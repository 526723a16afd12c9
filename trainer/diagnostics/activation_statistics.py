"""Statistics of the values inside the network: moments, saturation, dead channels."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from syncnorm.norm.statistics.moments import Moments
from syncnorm.trainer.diagnostics.covariate_shift import overall
from syncnorm.trainer.diagnostics.probe import Probe


def measure(probe: Probe) -> dict[str, Any]:
    """Per layer and per activation, over all workers' samples and all positions of a step's batch:

    mean, std: of the outputs, all channels together; channel_mean, channel_std: of each channel (std is biased).
    For elementwise activations f, of their inputs x:
    saturated_share: share of values with |f'(x)| < 0.01: they let (almost) no gradient through. For ReLU this is the
    share of inactive units. dead_channels: share of channels all of whose values are such; no sample of this batch
    teaches them anything.

    A module that is called several times counts as one over its calls. Activations that are functions, not modules, are
    not seen. See: Glorot & Bengio 2010, sec. 3 (saturation); Lu et al. 2019, arXiv:1903.06733 (dead ReLU).
    """
    observations = probe.observation
    layers: dict[str, Any] = {path: _moments(each) for path, each in observations.outputs.items()}
    for path, counts in observations.slopes.items():
        layers[path] |= saturation(counts)
    return {"layers": layers}


def metrics(record: dict[str, Any]) -> dict[tuple[str, str], float]:
    """By (layer, name)."""
    names = {
        "mean": "activation_mean",
        "std": "activation_std",
        "saturated_share": "saturated_share",
        "dead_channels": "dead_channels",
    }
    return {
        (path, metric): layer[name]
        for path, layer in record["layers"].items()
        for name, metric in names.items()
        if name in layer
    }


def saturation(counts: Tensor) -> dict[str, float]:
    """counts: (2, C), the values of each channel and how many of them are flat."""
    values, flat = counts
    return {
        "saturated_share": float(flat.sum() / values.sum().clamp_min(1)),
        "dead_channels": float((flat == values).double().mean()),
    }


def _moments(channels: Moments) -> dict[str, Any]:
    return overall(channels) | {
        "channel_mean": channels.mean.tolist(),
        "channel_std": channels.biased_variance.sqrt().tolist(),
    }
