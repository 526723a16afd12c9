"""Ten to five hundred normalization layers: what converting, auditing and folding a network takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch
from torch import nn

from benchmarks.growth.curves import Curve
from syncnorm import norm

LAYERS = (10, 30, 100, 200, 500)


def measure() -> Iterator[Curve]:
    lines = {
        "convert to sync_batch": [_least(lambda model: norm.convert(model, "sync_batch"), count) for count in LAYERS],
        "audit": [_least(_audit, count) for count in LAYERS],
        "fold": [_least(lambda model: norm.fold(model.eval()), count) for count in LAYERS],
    }
    yield Curve("layers", "A network of many normalization layers", "layers", "seconds, minimum", LAYERS, lines)


def _audit(model: nn.Module) -> object:
    return norm.audit(model, torch.randn(2, 8, 8, 8), batch_size=2, workers=2)


def _least(act: Callable[[nn.Module], object], count: int, rounds: int = 3) -> float:
    taken = []
    for _ in range(rounds):
        model = _network(count)
        began = time.perf_counter()
        act(model)
        taken.append(time.perf_counter() - began)
    return min(taken)


def _network(count: int) -> nn.Sequential:
    blocks = (nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(count))
    return nn.Sequential(*blocks)
