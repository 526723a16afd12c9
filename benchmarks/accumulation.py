"""A training step of four micro-batches: normalized as one batch, against each normalized by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.harness import Table, compare
from benchmarks.norm_resnet_step import resnet
from syncnorm import norm
from syncnorm.norm.accumulation.activation_memory import Memory

PEER = "each by itself"
MICRO_BATCHES = 4
GOALS = {("4 x 16x3x32x32", "as one batch"): 1.35}


def build(micro_batch: int, memory: Memory) -> Mapping[str, Callable[[], object]]:
    """One step of SGD by each way."""
    x, target = torch.randn(MICRO_BATCHES * micro_batch, 3, 32, 32), torch.randint(10, (MICRO_BATCHES * micro_batch,))
    pairs = list(zip(x.split(micro_batch), target.split(micro_batch), strict=True))

    def step(loss_of: Callable[[nn.Module], None]) -> Callable[[], object]:
        torch.manual_seed(0)
        net = resnet(norm.SyncBatchNorm)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)

        def run() -> None:
            optimizer.zero_grad()
            loss_of(net)
            optimizer.step()

        return run

    def apart(net: nn.Module) -> None:
        for part, wanted in pairs:
            loss: Tensor = cross_entropy(net(part), wanted) / MICRO_BATCHES
            loss.backward()

    def together(net: nn.Module) -> None:
        norm.accumulated(net, cross_entropy, pairs, memory=memory).backward()

    return {PEER: step(apart), "as one batch": step(together)}


def run(rounds: int = 20) -> Table:
    # Each way to keep activations has a process of its own, as in a job: what one of them leaves on the heap makes the
    # others fetch pages anew.
    settings: dict[str, tuple[int, Memory]] = {
        "4 x 4x3x32x32": (4, "device"),
        "4 x 16x3x32x32": (16, "device"),
        "4 x 16x3x32x32, blocks recomputed": (16, "recompute"),
    }
    rows = compare(build, settings, PEER, goals=GOALS, rounds=rounds, workers=1)
    return Table("accumulation", PEER, rows, workers=1)
