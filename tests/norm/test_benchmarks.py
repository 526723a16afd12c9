"""The baseline that the benchmarks compare with computes the same function, so that the race is fair."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.detectron2_style import Detectron2StyleSyncBatchNorm
from benchmarks.norm_resnet_step import resnet
from syncnorm.norm import SyncBatchNorm
from tests.helpers.norm.pool import Pool


def _both(rank: int, world_size: int) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(rank)
    x, dy = torch.randn(2, 4, 3, 5, 5)
    results = []
    for layer in (Detectron2StyleSyncBatchNorm(3), SyncBatchNorm(3)):
        mine = x.clone().requires_grad_()
        y = layer(mine)
        y.backward(dy)
        results.append((y.detach(), mine.grad))
    return results


def test_baseline_normalizes_equal_batches_as_we_do(pool: Pool) -> None:
    for (y, dx), (our_y, our_dx) in pool.run(_both, 2):
        torch.testing.assert_close(y, our_y, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(dx, our_dx, rtol=1e-4, atol=1e-5)


def test_resnet_of_the_benchmark_has_21_norm_layers() -> None:
    net = resnet(nn.BatchNorm2d)

    assert sum(isinstance(module, nn.BatchNorm2d) for module in net.modules()) == 21
