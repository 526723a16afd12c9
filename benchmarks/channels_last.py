"""Group, layer and instance normalization, forward and backward: channels_last by ours and by torch, and contiguous."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F

from benchmarks.harness import Table, compare
from syncnorm.norm.backends.by_sample.group_norm import group_norm

PEER = "contiguous, torch"
OURS = "channels_last, ours"
SHAPES = ((8, 64, 56, 56), (2, 256, 14, 14), (2, 32, 64, 64, 64), (2, 320, 6, 6, 6))
GROUPS: Mapping[str, Callable[[int], int]] = {"group": lambda C: C // 2, "layer": lambda _: 1, "instance": lambda C: C}


ELEMENTS = 2_000_000
"""Of a round: small tensors are normalized several times in it, since the clock and the barrier before it cost time."""


def build(shape: tuple[int, ...], kind: str) -> Mapping[str, Callable[[], object]]:
    """Forward and backward of each."""
    C = shape[1]
    calls = max(1, ELEMENTS // math.prod(shape))
    G = min(GROUPS[kind](C), 32) if kind == "group" else GROUPS[kind](C)
    weight, bias = (torch.randn(C).requires_grad_() for _ in range(2))

    def step(normalize: Callable[..., torch.Tensor], kept: torch.memory_format) -> Callable[[], object]:
        x, dy = (torch.randn(shape).to(memory_format=kept) for _ in range(2))
        x.requires_grad_()

        def run() -> None:
            for _ in range(calls):
                torch.autograd.grad(normalize(x, G, weight, bias, 1e-5), [x, weight, bias], dy)

        return run

    kept = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    return {
        PEER: step(F.group_norm, torch.contiguous_format),
        OURS: step(group_norm, kept),
        "channels_last, torch": step(F.group_norm, kept),
    }


def run(rounds: int = 40) -> Table:
    settings = {f"{kind} {shape}".replace(", ", ","): (shape, kind) for shape in SHAPES for kind in GROUPS}
    goals = {(setting, OURS): 1.1 for setting in settings}
    rows = compare(build, settings, PEER, goals=goals, rounds=rounds, workers=1)
    return Table("channels_last", PEER, rows, workers=1)
