"""Gradients and weights of each layer over training, as histograms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from syncnorm.trainer.diagnostics import group
from syncnorm.trainer.diagnostics.probe import Probe

BINS = 51
# The four panels of a layer, in the order of the source.
PANELS = ("gradient", "gradient_below", "weight", "weight_minus_gradient")


def measure(probe: Probe) -> dict[str, Any]:
    """Per layer, at the weights W of a step, for the loss L of its batch:

    gradient: g = ∂L/∂W. gradient_below: ∂L/∂x, x being what the layer took; absent in the first layer. weight: W.
    weight_minus_gradient: W − g, without a learning rate. Each is a histogram over all entries, see `histogram`, with
    its l2 norm. nonzero_share: share of the entries of g that are not exactly 0; where g is 0 but for rounding, as for
    constant inputs before a batch norm, it hangs on the order of sums.

    g is that of the whole batch, as the optimizer gets it before clipping; ∂L/∂x is taken over all workers' samples.
    Source: "Normalization from the gradient's point of view", which compares no normalization, BN, LN, IN and Box-Cox
    by these panels.
    """
    observations = probe.observation
    below = _below(observations.below)
    layers: dict[str, Any] = {}
    for path, names in probe.layers.items():
        gradient = torch.cat([observations.gradient[name].flatten() for name in names])
        weight = torch.cat([probe.start.parameters[name].flatten() for name in names])
        layers[path] = {
            "nonzero_share": nonzero_share(gradient),
            "gradient": histogram(gradient),
            **({"gradient_below": below[path]} if path in below else {}),
            "weight": histogram(weight),
            "weight_minus_gradient": histogram(weight - gradient),
        }
    return {"layers": layers}


def metrics(record: dict[str, Any]) -> dict[tuple[str, str], float]:
    """By (layer, name)."""
    found = {}
    for path, layer in record["layers"].items():
        found[path, "nonzero_gradient_share"] = layer["nonzero_share"]
        for panel in ("gradient", "gradient_below", "weight"):
            if panel in layer:
                found[path, f"{panel}_l2"] = layer[panel]["l2"]
    return found


def nonzero_share(gradient: Tensor) -> float:
    """Share of entries that are not exactly 0; a NaN is none."""
    return float(torch.count_nonzero(gradient)) / max(gradient.numel(), 1)


def histogram(values: Tensor) -> dict[str, Any]:
    """Counts in BINS equal bins from -limit to limit, the largest finite magnitude (1 if all are 0); and the l2 norm.

    Values that are not finite are left out.
    """
    values = values[values.isfinite()].double()
    limit = float(values.abs().max()) if values.numel() else 0.0
    counts = torch.histc(values, BINS, -(limit or 1.0), limit or 1.0)
    return {"limit": limit or 1.0, "counts": counts.long().tolist(), "l2": float(values.norm())}


def _below(local: dict[str, Tensor]) -> dict[str, Any]:
    """`histogram` of each layer's values of all workers, in two exchanges."""
    if not local:
        return {}
    values = [each[each.isfinite()].double() for each in local.values()]
    limits = group.largest(torch.stack([each.abs().max() if each.numel() else each.new_zeros(()) for each in values]))
    limits = torch.where(limits > 0, limits, torch.ones_like(limits))
    rows = [
        torch.cat([torch.histc(each, BINS, -limit, limit), each.square().sum().view(1)])
        for each, limit in zip(values, limits.tolist(), strict=True)
    ]
    summed = group.total(torch.stack(rows))
    return {
        path: {"limit": limit, "counts": row[:BINS].long().tolist(), "l2": float(row[BINS].sqrt())}
        for path, limit, row in zip(local, limits.tolist(), summed, strict=True)
    }
