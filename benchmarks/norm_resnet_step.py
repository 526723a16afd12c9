"""A training step of a ResNet with 21 batch normalizations under DDP, against the same with local nn.BatchNorm2d."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from benchmarks.detectron2_style import Detectron2StyleSyncBatchNorm
from benchmarks.harness import Table, compare
from benchmarks.norm_layer import PEER, gloo_group
from syncnorm.norm import SyncBatchNorm

GOALS = {("batch 16x3x32x32", "ours, shared memory"): 1.04}
Norm = Callable[[int], nn.Module]


class _Block(nn.Module):
    def __init__(self, channels_in: int, channels: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False), norm(channels), nn.ReLU(),
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False), norm(channels),
        )  # fmt: skip
        is_same = stride == 1 and channels_in == channels
        down = nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride, bias=False), norm(channels))
        self.shortcut = nn.Identity() if is_same else down

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.branch(x) + self.shortcut(x))


def resnet(norm: Norm) -> nn.Sequential:
    """ResNet-20 of He et al. 2015 for CIFAR, with 1x1 shortcuts: 1 + 18 + 2 = 21 norm layers."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), norm(16), nn.ReLU()]
    widths = [16, 16, 16, 32, 32, 32, 64, 64, 64]
    for before, width in zip([16, *widths], widths, strict=False):
        layers.append(_Block(before, width, 1 if before == width else 2, norm))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def build(batch: int) -> Mapping[str, Callable[[], object]]:
    """One step of SGD with each normalization."""
    x, target = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))
    group = gloo_group()

    def step(norm: Norm) -> Callable[[], object]:
        torch.manual_seed(0)
        net = DistributedDataParallel(resnet(norm), broadcast_buffers=False)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)

        def run() -> None:
            optimizer.zero_grad()
            cross_entropy(net(x), target).backward()
            optimizer.step()

        return run

    return {
        PEER: step(nn.BatchNorm2d),
        "ours, shared memory": step(SyncBatchNorm),
        "ours, gloo": step(lambda C: SyncBatchNorm(C, process_group=group)),
        "Detectron2-style": step(Detectron2StyleSyncBatchNorm),
        "GroupNorm, local": step(lambda C: nn.GroupNorm(8, C)),
    }


def run(rounds: int = 40) -> Table:
    rows = compare(build, {"batch 16x3x32x32": (16,)}, PEER, goals=GOALS, rounds=rounds)
    return Table("norm_resnet_step", PEER, rows)
