"""Figures of a session: each step appends its own, the summary shows them beside their goals."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

FIGURES = "SYNCNORM_FIGURES"
"""A variable of the steps: the file that figures are appended to. Without it they are only printed."""


@dataclass(frozen=True)
class Figure:
    """goal: the most that is wanted; None: there is no goal."""

    step: str
    name: str
    value: float
    goal: float | None = None

    @property
    def verdict(self) -> str:
        if self.goal is None:
            return ""
        return "met" if self.value <= self.goal else "missed"


def record(figures: Iterable[Figure]) -> None:
    for figure in figures:
        goal = "" if figure.goal is None else f"  goal {figure.goal:g} {figure.verdict}"
        print(f"{figure.step}: {figure.name}  {figure.value:.3f}{goal}", flush=True)
        if file := os.environ.get(FIGURES):
            with Path(file).open("a") as out:
                out.write(json.dumps(asdict(figure)) + "\n")


def read(file: Path) -> list[Figure]:
    lines = file.read_text().splitlines() if file.exists() else []
    return [Figure(**json.loads(line)) for line in lines]
