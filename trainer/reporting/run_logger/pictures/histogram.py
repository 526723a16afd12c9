"""A histogram as numbers and as a small picture. Drawn without matplotlib: a module may log one for each parameter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

_BINS = 64
_WIDTH, _HEIGHT, _MARGIN = 320, 160, 16


@dataclass(frozen=True)
class Histogram:
    """counts[i] values lie between edges[i] and edges[i + 1]. non_finite: how many values were NaN or infinite."""

    counts: list[float]
    edges: list[float]
    mean: float
    std: float
    count: int
    non_finite: int

    @classmethod
    def of(cls, values: NDArray[Any], bins: Any = _BINS, max_bins: int | None = None) -> Histogram:
        """bins: a number of bins, their edges, or the name of a rule of numpy's; TensorBoard's default means 64."""
        flat = values.astype(np.float64).ravel()
        finite = flat[np.isfinite(flat)]
        if isinstance(bins, str) and bins == "tensorflow":
            bins = _BINS
        counts, edges = np.histogram(finite, bins)
        if max_bins is not None and len(counts) > max_bins:
            counts, edges = np.histogram(finite, max_bins)
        mean, std = (float(finite.mean()), float(finite.std())) if finite.size else (0.0, 0.0)
        return cls(counts.tolist(), edges.tolist(), mean, std, flat.size, flat.size - finite.size)

    @classmethod
    def of_counts(cls, counts: Sequence[float], edges: Sequence[float]) -> Histogram:
        """Of values that were counted before; mean and std are those of the centers of their bins."""
        if len(edges) != len(counts) + 1:
            raise ValueError(f"n counts need n + 1 edges; got {len(counts)} and {len(edges)}")
        weights, all_edges = np.asarray(counts, np.float64), np.asarray(edges, np.float64)
        centers, count = (all_edges[1:] + all_edges[:-1]) / 2, float(weights.sum())
        mean = float(weights @ centers / count) if count else 0.0
        std = float(np.sqrt(weights @ (centers - mean) ** 2 / count)) if count else 0.0
        return cls(weights.tolist(), all_edges.tolist(), mean, std, round(count), 0)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def draw(self) -> Image.Image:
        """Bars over their range, with its ends below and the largest count above."""
        image = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
        pen = ImageDraw.Draw(image)
        highest, low, high = max(self.counts, default=0), self.edges[0], self.edges[-1]
        bottom, scale_x = _HEIGHT - _MARGIN, (_WIDTH - 1) / max(high - low, np.finfo(np.float64).tiny)
        for count, left, right in zip(self.counts, self.edges, self.edges[1:], strict=False):
            top = bottom - (bottom - _MARGIN) * count / max(highest, 1)
            pen.rectangle(((left - low) * scale_x, top, max((right - low) * scale_x - 1, 0), bottom), fill="#1f77b4")
        pen.text((1, bottom + 1), f"{low:.3g}", fill="black")
        pen.text((_WIDTH - 1, bottom + 1), f"{high:.3g}", fill="black", anchor="ra")
        pen.text((1, 1), f"max {highest:g}, mean {self.mean:.3g}, std {self.std:.3g}, n {self.count}", fill="black")
        return image
