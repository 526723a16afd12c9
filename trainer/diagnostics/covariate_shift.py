"""Internal covariate shift: what the update of the layers before a layer does to its gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from syncnorm.norm.statistics.moments import Moments, merge
from syncnorm.trainer.diagnostics.observed_layers import layer_of
from syncnorm.trainer.diagnostics.probe import Probe


def measure(probe: Probe) -> dict[str, Any]:
    """Per layer i, for the batch (x, y) of a step from weights W^t to W^{t+1}:

    G  = ∇_{W_i} L(W_1^t, …, W_k^t; x, y)
    G' = ∇_{W_i} L(W_1^{t+1}, …, W_{i−1}^{t+1}, W_i^t, W_{i+1}^t, …, W_k^t; x, y)
    shift_l2: ‖G − G'‖₂, the internal covariate shift. shift_cosine: cos(G, G'); 1 is no shift in direction.

    W^{t+1} is what the job's optimizer made of W^t. The layers before i are the modules first called before it, with
    their biases and norm parameters; a container of layers counts from when it was called. The first layer has no
    shift. Also: mean and std of the layer's outputs, over all workers' samples, positions and channels.
    With gradient accumulation (x, y) is the last micro-batch of the step.
    Costs one pass over the batch per layer.
    See: Santurkar et al. 2018, arXiv:1805.11604, definition 2.1.
    """
    observations = probe.observation
    layers: dict[str, Any] = {}
    for path in [path for path in observations.order if path in probe.layers]:
        before = _parameters_before(observations.order, path, list(observations.gradient))
        updated = {name: probe.end.parameters[name] for name in before}
        gradient = probe.evaluate(updated).gradient if before else observations.gradient
        names = probe.layers[path]
        layers[path] = shift(
            torch.cat([observations.gradient[name].flatten() for name in names]),
            torch.cat([gradient[name].flatten() for name in names]),
        ) | (overall(observations.outputs[path]) if path in observations.outputs else {})
    return {"layers": layers}


def metrics(record: dict[str, Any]) -> dict[tuple[str, str], float]:
    """By (layer, name)."""
    return {
        (path, name): layer[name] for path, layer in record["layers"].items() for name in ("shift_l2", "shift_cosine")
    }


def shift(gradient: Tensor, after: Tensor) -> dict[str, float]:
    """l2 distance and cosine of two gradients, in fp64. The cosine is 1 between equal ones, 0 with one of them 0."""
    first, second = gradient.double(), after.double()
    lengths = first.norm() * second.norm()
    cosine = float(first @ second / lengths) if lengths > 0 else float(torch.equal(first, second))
    return {
        "gradient_l2": float(first.norm()),
        "shift_l2": float((first - second).norm()),
        "shift_cosine": min(1.0, max(-1.0, cosine)),
    }


def overall(channels: Moments) -> dict[str, float]:
    """Mean and standard deviation (biased) over all channels together."""
    size = len(channels.mean)
    values = merge(channels.count.expand(size), channels.mean.unsqueeze(1), channels.m2.unsqueeze(1))
    return {"mean": float(values.mean), "std": float(values.biased_variance.sqrt())}


def _parameters_before(order: list[str], path: str, names: list[str]) -> list[str]:
    """Those of `names` that belong to modules first called before `path`."""
    earlier = set(order[: order.index(path)])
    return [name for name in names if layer_of(name) in earlier]
