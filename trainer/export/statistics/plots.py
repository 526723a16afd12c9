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


_WIDTH, _DPI, _SMALL = 9.0, 100, 6
"""Inches, dots an inch, and the size of a layer's name in points."""
_LONGEST_NAME = 60
"""Characters. Of a longer name the end is shown, which tells layers apart."""


def _draw_lines(series: Mapping[str, Series], path: Path) -> Path:
    layers = [_shown(layer) for layer in series["running_mean_abs"]]
    has_legend = len(layers) <= 24
    figure, axes = _figure(9, rows=len(PANELS), right=_longest(layers) + 0.6 if has_legend else 0.15)
    for axis, (what, title) in zip(axes, PANELS.items(), strict=True):
        for index, (layer, values) in enumerate(series[what].items()):
            shade = index / max(len(series[what]) - 1, 1)
            color, label = (shade, 0.3, 1 - shade), _shown(layer)
            axis.plot(list(values), list(values.values()), color=color, label=label, linewidth=1)
        axis.set_title(title, fontsize=9)
        axis.set_yscale("symlog", linthresh=1e-3)
        axis.grid(alpha=0.3)
    axes[-1].set_xlabel("optimizer step (blue: first layer, red: last)")
    if has_legend:
        figure.legend(*axes[0].get_legend_handles_labels(), fontsize=_SMALL, loc="upper right")
    figure.savefig(path)
    return path


def _draw_heat_map(series: Series, path: Path) -> Path:
    layers, steps, values = heat_map(series)
    names = [_shown(layer) for layer in layers]
    figure, (axis,) = _figure(max(2.0, 0.22 * len(layers) + 1.2), left=_longest(names) + 0.15)
    image = axis.imshow(np.log10(values + 1e-6), aspect="auto", interpolation="nearest", cmap="viridis")
    axis.set_yticks(range(len(layers)), names, fontsize=_SMALL)
    ticks = np.linspace(0, len(steps) - 1, min(len(steps), 10)).round().astype(int)
    axis.set_xticks(ticks, [str(steps[tick]) for tick in ticks])
    axis.set_xlabel("optimizer step")
    figure.colorbar(image, label="log10 drift, in running stds", pad=0.02)
    figure.savefig(path)
    return path


def _figure(height: float, *, rows: int = 1, left: float = 0.75, right: float = 0.3) -> tuple[Any, list[Any]]:
    """A figure and its axes; all lengths are inches. The margins are fixed, because matplotlib's layout engines draw
    everything twice to find them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), dpi=_DPI)
    FigureCanvasAgg(figure)
    figure.subplots_adjust(left / _WIDTH, 0.5 / height, 1 - right / _WIDTH, 1 - 0.3 / height, hspace=0.3)
    return figure, list(np.atleast_1d(figure.subplots(rows, 1)))


def _shown(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"…{name[1 - _LONGEST_NAME :]}"


def _longest(names: Iterable[str]) -> float:
    """Width in inches of the longest name in small letters."""
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.font_manager import FontProperties

    renderer, font = RendererAgg(1, 1, _DPI), FontProperties(size=_SMALL)
    dots = [renderer.get_text_width_height_descent(name, font, ismath=False)[0] for name in names]
    return float(max(dots)) / _DPI
