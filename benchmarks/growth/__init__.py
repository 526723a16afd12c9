"""How cost grows with the work: ranks, jobs, layers and followers. `python -m benchmarks growth` measures and draws."""

from __future__ import annotations

from benchmarks.growth import followers, jobs, layers, ranks
from benchmarks.growth.curves import draw, write


def run() -> None:
    """Writes results/growth.json and the pictures of the performance page."""
    curves = [curve for growing in (ranks, layers, jobs, followers) for curve in growing.measure()]
    write(curves)
    draw(curves)
