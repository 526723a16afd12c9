"""What an audit looks at, and what it finds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from syncnorm.norm.kind import KINDS, Kind
from syncnorm.norm.reading.readers import Source

Severity = Literal["info", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One thing about a model's normalization that its owner should know, with the numbers behind it and a fix.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    >>> finding = norm.audit(model, torch.zeros(1, 3, 8, 8), batch_size=1, workers=4)[0]
    >>> finding.code, finding.path, finding.severity
    ('statistics_of_one_worker', '1', 'warning')
    """

    code: str
    path: str
    message: str
    fix: str
    severity: Severity
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Training:
    """How the model is going to be trained. batch_size: samples per worker and step; None: not known."""

    batch_size: int
    workers: int
    accumulate: int = 1
    dataset_size: int | None = None
    drop_last: bool = False
    steps: int | None = None
    group: int | None = None
    """Neighbouring workers that share statistics; None: all."""


@dataclass(frozen=True, eq=False)
class ObservedLayer:
    """A normalization layer and the shapes (N, C, *) of the inputs it had in one forward."""

    path: str
    layer: nn.Module
    source: Source
    shapes: tuple[torch.Size, ...]

    @property
    def kind(self) -> Kind:
        return KINDS[self.source.kind]

    @property
    def subtracts_mean(self) -> bool:
        """As its kind does, but for EvoNorm-B of timm: it normalizes by the batch, with a variance alone."""
        return self.kind.centers and (hasattr(self.layer, "running_mean") or not self.kind.running_statistics)

    @property
    def positions(self) -> int:
        """Spatial positions of the smallest map the layer saw; 1 where it has none, or was not reached."""
        return min((math.prod(shape[2:]) for shape in self.shapes), default=1)

    def workers(self, training: Training) -> int:
        """Workers whose values go into one statistic."""
        return (training.group or training.workers) if self.kind.synchronizes else 1

    def values(self, training: Training) -> int:
        """Values behind one statistic of a full batch."""
        samples = training.batch_size
        if self.source.kind == "ghost_batch":
            samples = min(samples, int(vars(self.layer)["ghost_size"]))
        return samples * self.positions * self.workers(training)
