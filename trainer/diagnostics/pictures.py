"""One picture per diagnostic, as PNG, from its records alone. Without pyplot: it keeps figures in global state."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from syncnorm.trainer.diagnostics.gradient_histograms import PANELS

Records = list[dict[str, Any]]

ROWS = 6  # layers with panels of their own: first, last, and between them evenly
CURVES = 6  # steps drawn in one panel
FEW = 2000  # of fewer entries a third of the bins is drawn
COLOURS = 24  # enough for curves and letters, and a fifth of the bytes of full colour
_TITLES = {
    "gradient": "gradient of weights",
    "gradient_below": "gradient to layer below",
    "weight": "weights",
    "weight_minus_gradient": "weights − gradient",
}


def gradient_histograms(records: Records) -> bytes:
    """A row per layer: the four panels, a curve per step (dark to light over training), and the non-zero share."""
    layers = evenly(_layers(records), ROWS)
    figure = Figure(figsize=(11, 1.6 * len(layers) + 0.6), layout="constrained")
    grid = figure.subplots(len(layers), len(PANELS) + 1, squeeze=False)
    for row, layer in zip(grid, layers, strict=True):
        for axes, panel in zip(row, PANELS, strict=False):
            _density_over_time(axes, evenly(records, CURVES), layer, panel)
        _over_steps(row[-1], records, [layer], "nonzero_share")
        row[-1].set_ylim(-0.05, 1.05)
        row[0].set_ylabel(layer or "network", fontsize=8)
    for axes, title in zip(grid[0], [*(_TITLES[panel] for panel in PANELS), "share of g ≠ 0"], strict=True):
        axes.set_title(title, fontsize=9)
    steps = [record["step"] for record in records]
    figure.suptitle(f"entries per unit of value, steps {steps[0]} (dark) to {steps[-1]} (light)", fontsize=10)
    return _png(figure)


def landscape(records: Records) -> bytes:
    """Range of the loss and of the gradient's change along the gradient, and β, over training."""
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    loss, change, beta = figure.subplots(1, 3)
    steps = [record["step"] for record in records]
    _band(loss, steps, _numbers(records, "losses"), "loss along the gradient")
    loss.plot(steps, _numbers(records, "loss"), color="black", linewidth=1, label="loss at the weights")
    loss.legend(fontsize=8)
    _band(change, steps, _numbers(records, "gradient_changes"), "change of the gradient (l2)")
    beta.plot(steps, _numbers(records, "beta"), marker="o", markersize=3)
    beta.set_title("effective β-smoothness", fontsize=10)
    for axes in (loss, change, beta):
        axes.set_xlabel("step")
    return _png(figure)


def covariate_shift(records: Records) -> bytes:
    """Shift (l2 and cosine) and moments of the outputs of each layer over training."""
    panels = {
        "shift_l2": "‖G − G'‖₂",
        "shift_cosine": "cos(G, G')",
        "mean": "mean of outputs",
        "std": "std of outputs",
    }
    return _panels(records, panels, evenly(_layers(records), 2 * ROWS))


def activation_statistics(records: Records) -> bytes:
    """Moments of outputs, saturation and dead channels of each layer over training."""
    panels = {
        "mean": "mean of outputs",
        "std": "std of outputs",
        "saturated_share": "share of saturated values",
        "dead_channels": "share of dead channels",
    }
    return _panels(records, panels, evenly(_layers(records), 2 * ROWS))


def equivalence(records: Records) -> bytes:
    """How far k workers are from one device over training: gradients and statistics of each layer, loss, optimizer."""
    figure = Figure(figsize=(14, 3.6), layout="constrained")
    row = figure.subplots(1, 4)
    layers = evenly(_layers(records), 2 * ROWS)
    _over_steps(row[0], records, layers, "gradient_difference")
    _over_steps(row[1], records, layers, "statistics_difference")
    steps = [record["step"] for record in records]
    row[2].plot(steps, _numbers(records, "loss_difference"), marker=".")
    row[3].plot(steps, _numbers(records, "optimizer_difference"), marker=".")
    titles = ("gradients, by layer", "running statistics, by layer", "loss", "gradients given to the optimizer")
    for axes, title in zip(row, titles, strict=True):
        axes.axhline(records[0]["tolerance"], color="crimson", linewidth=1, label="tolerance")
        axes.set_yscale("symlog", linthresh=1e-9)
        axes.set_ylim(0, 10)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step")
    handles = {line.get_label(): line for axes in row[:2] for line in axes.get_lines()}
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", fontsize=8)
    return _png(figure)


def evenly(things: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of `things`, evenly spaced, the first and the last among them."""
    if len(things) <= count:
        return list(things)
    return [things[round(i * (len(things) - 1) / (count - 1))] for i in range(count)]


def _panels(records: Records, panels: dict[str, str], layers: list[str]) -> bytes:
    figure = Figure(figsize=(14, 3.6), layout="constrained")
    row = figure.subplots(1, len(panels))
    for axes, (name, title) in zip(row, panels.items(), strict=True):
        _over_steps(axes, records, layers, name)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step")
    handles = {line.get_label(): line for axes in row for line in axes.get_lines()}
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", fontsize=8)
    return _png(figure)


def _over_steps(axes: Axes, records: Records, layers: list[str], name: str) -> None:
    """A curve per layer that has `name`."""
    steps = [record["step"] for record in records]
    for i, layer in enumerate(layers):
        values = [record["layers"][layer].get(name) for record in records]
        if any(value is not None for value in values):
            color = colormaps["viridis"](i / max(len(layers) - 1, 1) * 0.9)
            axes.plot(steps, np.array(values, dtype=float), color=color, label=layer or "network", marker=".")
    axes.tick_params(labelsize=7)


def _density_over_time(axes: Axes, records: Records, layer: str, panel: str) -> None:
    shown = [each for record in records if (each := record["layers"][layer].get(panel)) is not None]
    for i, histogram in enumerate(shown):
        counts = np.array(histogram["counts"], dtype=float)
        if counts.sum() < FEW:
            counts = counts.reshape(-1, 3).sum(1)
        width = 2 * histogram["limit"] / len(counts)
        centers = (np.arange(len(counts)) - len(counts) // 2) * width
        density = counts / max(counts.sum(), 1) / width
        axes.plot(centers, density, color=colormaps["viridis"](i / max(len(shown) - 1, 1) * 0.9), linewidth=1)
    if shown:
        axes.set_yscale("symlog")
    else:
        axes.text(0.5, 0.5, "no layer below", ha="center", va="center", transform=axes.transAxes, fontsize=8)
    axes.tick_params(labelsize=6)
    axes.locator_params(axis="x", nbins=4)


def _band(axes: Axes, steps: list[int], values: NDArray[np.float64], title: str) -> None:
    axes.fill_between(steps, values.min(1), values.max(1), alpha=0.4)
    axes.set_title(title, fontsize=10)


def _numbers(records: Records, name: str) -> NDArray[np.float64]:
    return np.array([record[name] for record in records], dtype=float)


def _layers(records: Records) -> list[str]:
    return list(records[0]["layers"])


def _png(figure: Figure) -> bytes:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").quantize(COLOURS)
    buffer = io.BytesIO()
    image.save(buffer, format="png", optimize=True)
    return buffer.getvalue()
