"""Draws the states of a job and its moves as an SVG. The places are chosen by hand, the arrows come from the code."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from syncnorm.service.jobs.job import ARROWS, JobState

_S = JobState
_PLACES = {
    _S.QUEUED: (90, 210),
    _S.STARTING: (290, 210),
    _S.RUNNING: (490, 210),
    _S.FINALIZING: (690, 210),
    _S.SUCCEEDED: (890, 210),
    _S.FAILED: (490, 60),
    _S.STOPPING: (590, 350),
    _S.PAUSED: (190, 400),
    _S.CANCELLED: (390, 460),
}
"""Centers: the way to success from left to right, failure above it, and below it what a stop leads to."""
_WIDTH, _HEIGHT = 980, 510
_HALF_WIDTH, _HALF_HEIGHT = 52, 17
_BEND = 0.13
"""How far an arrow bends to its left, as a share of its length, so that two opposite ones lie apart."""
_BENT = {
    (_S.STARTING, _S.FINALIZING): 0.16,
    (_S.STARTING, _S.SUCCEEDED): 0.19,
    (_S.RUNNING, _S.SUCCEEDED): 0.17,
    (_S.RUNNING, _S.QUEUED): 0.26,
    (_S.FINALIZING, _S.QUEUED): 0.26,
    (_S.FAILED, _S.QUEUED): 0.02,
    (_S.CANCELLED, _S.QUEUED): 0.0,
}
"""Those that would cross a state between their ends."""
_STYLE = """\
text { font: 15px sans-serif; text-anchor: middle; dominant-baseline: central; fill: #1a237e }
rect { fill: #e8eaf6; stroke: #3f51b5; stroke-width: 1.5 }
rect.end { stroke-width: 3 }
path { fill: none; stroke: #5c6bc0; stroke-width: 1.5; marker-end: url(#head) }
#head path { fill: #5c6bc0; stroke: none; marker-end: none }"""


@dataclass(frozen=True)
class _Point:
    x: float
    y: float


def state_diagram() -> str:
    """The SVG. A title in each arrow says when a job moves along it; a browser shows it under the pointer."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">',
            "<title>The states of a job</title>",
            f"<style>\n{_STYLE}\n</style>",
            f'<rect x="0" y="0" width="{_WIDTH}" height="{_HEIGHT}" style="fill: #ffffff; stroke: none"/>',
            '<marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" orient="auto">'
            '<path d="M 0 1 L 10 5 L 0 9 z"/></marker>',
            *(_arrow(before, after, when) for (before, after), when in ARROWS.items()),
            *_states(),
            "</svg>",
        ]
    )


def _states() -> Iterator[str]:
    ends = {_S.SUCCEEDED, _S.FAILED, _S.CANCELLED}
    for state, (x, y) in _PLACES.items():
        kind = ' class="end"' if state in ends else ""
        box = f'x="{x - _HALF_WIDTH}" y="{y - _HALF_HEIGHT}" width="{2 * _HALF_WIDTH}" height="{2 * _HALF_HEIGHT}"'
        yield f'<rect{kind} {box} rx="8"/><text x="{x}" y="{y}">{state.value}</text>'


def _arrow(before: JobState, after: JobState, when: str) -> str:
    start, end = _Point(*_PLACES[before]), _Point(*_PLACES[after])
    bend = _BENT.get((before, after), _BEND)
    middle = _Point(
        (start.x + end.x) / 2 + bend * 2 * (end.y - start.y), (start.y + end.y) / 2 - bend * 2 * (end.x - start.x)
    )
    a, b = _edge(start, middle), _edge(end, middle)
    return (
        f'<path d="M {a.x:.0f} {a.y:.0f} Q {middle.x:.0f} {middle.y:.0f} {b.x:.0f} {b.y:.0f}">'
        f"<title>{before.value} to {after.value}: {when}</title></path>"
    )


def _edge(center: _Point, towards: _Point) -> _Point:
    """Where the line from the center of a state leaves its box."""
    x, y = towards.x - center.x, towards.y - center.y
    scale = min(_HALF_WIDTH / abs(x) if x else math.inf, _HALF_HEIGHT / abs(y) if y else math.inf)
    return _Point(center.x + x * scale, center.y + y * scale)
