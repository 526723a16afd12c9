"""The pictures of a study's report, as PNG, from its table alone. Without pyplot: it keeps figures in global state."""

from __future__ import annotations

import io
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from syncnorm.service.jobs.study_spec import Point, StudySpec
from syncnorm.service.studies.comparison import Row, by_seed
from syncnorm.service.studies.measures import Outcome, curve

COLUMNS = 3
"""Panels in one row."""
Colour = tuple[float, float, float, float]


def draw(study: StudySpec, rows: Sequence[Row]) -> dict[str, bytes]:
    """`comparison`, `curves` and `heat_map`; pictures without measurements are left out."""
    x_axis = numeric_axis(rows)
    drawn = {
        "comparison": _comparison(study, rows, x_axis),
        "curves": _curves(study, rows),
        "heat_map": _heat_map(study, rows, x_axis),
    }
    return {name: png for name, png in drawn.items() if png is not None}


def numeric_axis(rows: Sequence[Row]) -> str | None:
    """The axis to draw along x: the last one with several values, all of them numbers."""
    for axis in reversed(rows[0].point):
        labels = {row.point[axis] for row in rows}
        if len(labels) > 1 and all(map(_is_number, labels)):
            return axis
    return None


def _is_number(label: str) -> bool:
    try:
        return math.isfinite(float(label))
    except ValueError:
        return False


def short(point: Point, without: str | None = None) -> str:
    """A short name of a place: the labels of its axes."""
    return " · ".join(label for axis, label in point.items() if axis != without) or "all"


def _comparison(study: StudySpec, rows: Sequence[Row], x_axis: str | None) -> bytes | None:
    """A panel a metric: over a numeric axis a line for each of the other places, else a line of dots a place."""
    metrics = [metric for metric in study.metrics if any(row.estimates[metric] for row in rows)]
    panel: Callable[[Axes, Sequence[Row], str], None] = _dots
    if x_axis is not None:
        along: str = x_axis
        panel = lambda axes, rows, metric: _lines(axes, rows, metric, along)  # noqa: E731
    return _panels(metrics, lambda axes, metric: panel(axes, rows, metric), height=0.3 * len(rows) if not x_axis else 0)


def _lines(axes: Axes, rows: Sequence[Row], metric: str, x_axis: str) -> None:
    lines: dict[str, list[tuple[float, Row]]] = defaultdict(list)
    for row in rows:
        lines[short(row.point, x_axis)].append((float(row.point[x_axis]), row))
    for colour, (name, members) in zip(_colours(len(lines)), lines.items(), strict=True):
        members.sort(key=lambda member: member[0])
        shown = [(x, found) for x, row in members if (found := row.estimates[metric])]
        spread = [0.0 if math.isnan(found.std) else found.std for _, found in shown]
        xs, means = [x for x, _ in shown], [found.mean for _, found in shown]
        axes.errorbar(xs, means, yerr=spread, color=colour, marker="o", markersize=4, capsize=3, label=name)
        for x, row in members:
            values = list(by_seed(row.outcomes, metric).values())
            axes.plot([x] * len(values), values, ".", color=colour, alpha=0.4, markersize=4)
    xs_all = sorted({x for line in lines.values() for x, _ in line})
    if xs_all[0] > 0 and xs_all[-1] / xs_all[0] > 4:
        axes.set_xscale("log", base=2 if all(math.log2(x).is_integer() for x in xs_all) else 10)
        axes.set_xticks(xs_all, [f"{x:g}" for x in xs_all])
        axes.minorticks_off()
    axes.set_yscale(_scale(_values(rows, metric)))
    axes.set_xlabel(x_axis, fontsize=8)
    axes.legend(fontsize=7)


def _dots(axes: Axes, rows: Sequence[Row], metric: str) -> None:
    for place, (colour, row) in enumerate(zip(_colours(len(rows)), rows, strict=True)):
        values = list(by_seed(row.outcomes, metric).values())
        axes.plot(values, [place] * len(values), ".", color=colour, alpha=0.6)
        if values:
            axes.plot([statistics.fmean(values)], [place], "|", color=colour, markersize=14, markeredgewidth=3)
    axes.set_yticks(range(len(rows)), [short(row.point) for row in rows], fontsize=7)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xscale(_scale(_values(rows, metric)))


def _values(rows: Sequence[Row], metric: str) -> Iterator[float]:
    for row in rows:
        yield from by_seed(row.outcomes, metric).values()


def _curves(study: StudySpec, rows: Sequence[Row]) -> bytes | None:
    """A panel a metric, a colour a place: the mean over seeds in bold, each seed thin."""
    metrics = [one for one in study.curves if any(curve(child, one) for row in rows for child in row.outcomes)]

    def panel(axes: Axes, metric: str) -> None:
        for colour, row in zip(_colours(len(rows)), rows, strict=True):
            _one_point(axes, row.outcomes, metric, colour, short(row.point))
        points = (point for row in rows for child in row.outcomes for point in curve(child, metric))
        axes.set_yscale(_scale(value for _, value in points))
        axes.set_xlabel("optimizer step", fontsize=8)
        if len(rows) <= 12:
            axes.legend(fontsize=6)

    return _panels(metrics, panel)


def _one_point(axes: Axes, outcomes: Sequence[Outcome], metric: str, colour: Colour, name: str) -> None:
    at: dict[int, list[float]] = defaultdict(list)
    for outcome in outcomes:
        points = curve(outcome, metric)
        shown = [step for step, _ in points], [value for _, value in points]
        axes.plot(*shown, _dot(points), color=colour, alpha=0.3, linewidth=0.7)
        for step, value in points:
            at[step].append(value)
    steps = sorted(at)
    means = [statistics.fmean(at[step]) for step in steps]
    axes.plot(steps, means, _dot(steps), color=colour, linewidth=1.6, label=name)


def _dot(points: Sequence[object]) -> str:
    """How to draw a curve: a line through one point alone would not be seen."""
    return "o-" if len(points) == 1 else "-"


def _heat_map(study: StudySpec, rows: Sequence[Row], x_axis: str | None) -> bytes | None:
    """The first metric over the grid: x the numeric axis, or else the seeds; empty where nothing was measured."""
    metric = study.metrics[0]
    cells: dict[str, dict[str, float]] = {}
    for row in rows:
        line = cells.setdefault(short(row.point, x_axis), {})
        if x_axis is None:
            line |= {f"seed {seed}": value for seed, value in by_seed(row.outcomes, metric).items()}
        elif found := row.estimates[metric]:
            line[row.point[x_axis]] = found.mean
    columns = _columns(rows, x_axis)
    values = np.array([[line.get(column, np.nan) for column in columns] for line in cells.values()])
    if np.isnan(values).all():
        return None
    figure = Figure(figsize=(2.5 + 0.9 * len(columns), 1.4 + 0.36 * len(cells)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values, aspect="auto", cmap="viridis")
    axes.set_yticks(range(len(cells)), list(cells), fontsize=7)
    axes.set_xticks(range(len(columns)), columns, fontsize=7)
    axes.set_xlabel(x_axis or "seed", fontsize=8)
    middle = (np.nanmin(values) + np.nanmax(values)) / 2
    for (y, x), value in np.ndenumerate(values):
        text, colour = ("none", "gray") if np.isnan(value) else (f"{value:.3g}", "white" if value < middle else "black")
        axes.text(x, y, text, ha="center", va="center", color=colour, fontsize=7)
    axes.set_title(metric, fontsize=9)
    figure.colorbar(image)
    return _png(figure)


def _columns(rows: Sequence[Row], x_axis: str | None) -> list[str]:
    if x_axis is not None:
        return sorted({row.point[x_axis] for row in rows}, key=float)
    return [f"seed {seed}" for seed in sorted({child.seed for row in rows for child in row.outcomes})]


def _panels(metrics: Sequence[str], panel: Callable[[Axes, str], None], height: float = 0) -> bytes | None:
    if not metrics:
        return None
    lines = math.ceil(len(metrics) / COLUMNS)
    figure = Figure(figsize=(4.4 * min(len(metrics), COLUMNS), max(3.2, height) * lines), layout="constrained")
    for axes, metric in zip(
        figure.subplots(lines, min(len(metrics), COLUMNS), squeeze=False).flat, metrics, strict=False
    ):
        panel(axes, metric)
        axes.set_title(metric, fontsize=9)
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=7)
    for axes in figure.axes[len(metrics) :]:
        axes.set_visible(False)
    return _png(figure)


def _scale(values: Iterable[float]) -> str:
    """Logarithmic for positive values that differ by more than a hundredfold."""
    found = list(values)
    return "log" if found and min(found) > 0 and max(found) > 100 * min(found) else "linear"


def _colours(count: int) -> list[Colour]:
    if count <= 10:
        return [colormaps["tab10"](index) for index in range(count)]
    return [colormaps["turbo"](0.05 + 0.9 * index / (count - 1)) for index in range(count)]


def _png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
