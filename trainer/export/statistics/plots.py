"""Pictures of the normalization layers over time, for the MLflow run. Drawn once, after training, from the spools."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from syncnorm.trainer.contract.mlflow_rest import read_layer_metric

PANELS = {
    "running_mean_abs": "mean of |running mean| over channels",
    "running_var_mean": "mean of running variance over channels",
    "drift": "drift: |batch mean - running mean| in running stds",
}

Series = Mapping[str, Mapping[int, float]]


def draw_statistics(spools: Iterable[Path], folder: Path) -> list[Path]:
    """`running_statistics.png` (a line a layer) and `drift.png` (layers x time); none without running statistics."""
    series = read_series(spools)
    if not series["running_mean_abs"]:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    drawn = [_draw_lines(series, folder / "running_statistics.png")]
    if series["drift"]:
        drawn.append(_draw_heat_map(series["drift"], folder / "drift.png"))
    return drawn


def read_series(spools: Iterable[Path]) -> dict[str, dict[str, dict[int, float]]]:
    """Panel -> layer -> step -> value; of a step recorded twice the first value counts.

    Attempts of earlier versions recorded `norm/{layer}/{what}`.
    """
    found: dict[str, dict[str, dict[int, float]]] = {what: {} for what in PANELS}
    for spool in spools:
        if not spool.exists():
            continue
        with spool.open() as lines:
            for point in map(json.loads, lines):
                layer, what = read_layer_metric(point["key"])
                if layer and what in found:
                    found[what].setdefault(layer, {}).setdefault(point["step"], point["value"])
    return found


def heat_map(series: Series) -> tuple[list[str], list[int], NDArray[np.float64]]:
    """Layers, steps, and the values as (layers, steps), NaN where a layer has no value at a step."""
    layers = list(series)
    steps = sorted({step for values in series.values() for step in values})
    return layers, steps, np.array([[series[layer].get(step, np.nan) for step in steps] for layer in layers])


def _figure(width: float, height: float, rows: int = 1) -> tuple[Any, list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(np.atleast_1d(figure.subplots(rows, 1)))


def _draw_lines(series: Mapping[str, Series], path: Path) -> Path:
    figure, axes = _figure(9, 9, rows=len(PANELS))
    for axis, (what, title) in zip(axes, PANELS.items(), strict=True):
        for index, (layer, values) in enumerate(series[what].items()):
            shade = index / max(len(series[what]) - 1, 1)
            axis.plot(list(values), list(values.values()), color=(shade, 0.3, 1 - shade), label=layer, linewidth=1)
        axis.set_title(title, fontsize=9)
        axis.set_yscale("symlog", linthresh=1e-3)
        axis.grid(alpha=0.3)
    axes[-1].set_xlabel("optimizer step (blue: first layer, red: last)")
    if len(series["running_mean_abs"]) <= 24:
        figure.legend(*axes[0].get_legend_handles_labels(), fontsize=6, loc="outside right upper")
    figure.savefig(path, dpi=100)
    return path


def _draw_heat_map(series: Series, path: Path) -> Path:
    layers, steps, values = heat_map(series)
    figure, (axis,) = _figure(9, max(2.0, 0.22 * len(layers) + 1.2))
    image = axis.imshow(np.log10(values + 1e-6), aspect="auto", interpolation="nearest", cmap="viridis")
    axis.set_yticks(range(len(layers)), layers, fontsize=6)
    ticks = np.linspace(0, len(steps) - 1, min(len(steps), 10)).round().astype(int)
    axis.set_xticks(ticks, [str(steps[tick]) for tick in ticks])
    axis.set_xlabel("optimizer step")
    figure.colorbar(image, label="log10 drift, in running stds")
    figure.savefig(path, dpi=100)
    return path
