"""What was measured at growing amounts of work, kept as numbers and as pictures."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.harness import RESULTS

PICTURES = Path(__file__).resolve().parents[2] / "docs/reference"


@dataclass(frozen=True)
class Curve:
    """Lines over the same amounts. name: of its picture. over: what grows. unit: of every line's values."""

    name: str
    title: str
    over: str
    unit: str
    amounts: Sequence[int]
    lines: Mapping[str, Sequence[float]]

    def print(self) -> None:
        print(f"\n{self.title} ({self.unit})")
        width = max(len(line) for line in [self.over, *self.lines])
        for line, values in [(self.over, self.amounts), *self.lines.items()]:
            print(f"  {line.ljust(width)}  " + " ".join(f"{value:>9.3g}" for value in values))


def write(curves: Iterable[Curve]) -> None:
    """Prints all, and keeps them in results/growth.json."""
    found = list(curves)
    for curve in found:
        curve.print()
    measured = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_average": os.getloadavg(),
        "curves": [asdict(curve) for curve in found],
    }
    (RESULTS / "growth.json").write_text(json.dumps(measured, indent=2) + "\n")


def draw(curves: Iterable[Curve]) -> None:
    """A picture of each, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    for curve in curves:
        figure, axes = pyplot.subplots(figsize=(6, 3.4), layout="constrained")
        for line, values in curve.lines.items():
            axes.loglog(curve.amounts, values, marker="o", label=line)
        axes.set(xlabel=curve.over, ylabel=curve.unit, title=curve.title)
        values = [value for line in curve.lines.values() for value in line]
        axes.set_ylim(10 ** math.floor(math.log10(min(values))), 10 ** math.ceil(math.log10(max(values))))
        axes.set_xticks(curve.amounts, [f"{amount:,}" for amount in curve.amounts])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
        figure.savefig(PICTURES / f"growth-{curve.name}.png", dpi=110)
        pyplot.close(figure)
