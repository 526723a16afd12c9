from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from syncnorm.norm import SyncBatchNorm, loss_weight
from tests.helpers.norm.pool import Pool
from tests.helpers.norm.splits import WAYS, part, relative_error, way

STEPS = 20


def _net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), SyncBatchNorm(8), nn.Tanh(),
        nn.Conv2d(8, 8, 3, stride=2, bias=False), SyncBatchNorm(8, momentum=None), nn.Tanh(),
        nn.Flatten(), nn.Linear(72, 5, bias=False), SyncBatchNorm(5, affine=False),
    ).double()  # fmt: skip


def _train(net: nn.Module, x: Tensor, target: Tensor, split: tuple[int, ...], rank: int) -> list[float]:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    losses = []
    for step in range(STEPS):
        mine, wanted = part(x[step], split, rank), part(target[step], split, rank)
        loss = nn.functional.cross_entropy(net(mine), wanted, reduction="sum") / max(len(mine), 1)
        loss = loss * loss_weight(len(mine), dtype=torch.float64)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def _data() -> tuple[Tensor, Tensor]:
    return torch.randn(STEPS, 8, 3, 9, 9, dtype=torch.float64), torch.randint(5, (STEPS, 8))


def _ddp(
    rank: int, world_size: int, x: Tensor, target: Tensor, split: tuple[int, ...], chosen: tuple[str, str]
) -> dict[str, Tensor]:
    net = _net()
    with way(*chosen):
        _train(DistributedDataParallel(net, broadcast_buffers=False), x, target, split, rank)
    return net.state_dict()


@pytest.mark.parametrize("chosen", WAYS)
@pytest.mark.parametrize("split", [(4, 4), (3, 5), (8, 0)])
def test_twenty_steps_on_two_workers_equal_one_device(
    pool: Pool, split: tuple[int, ...], chosen: tuple[str, str]
) -> None:
    x, target = _data()
    alone = _net()
    _train(alone, x, target, (8,), 0)

    results = pool.run(_ddp, 2, x, target, split, chosen)

    for name, value in alone.state_dict().items():
        for result in results:
            # Rounding of 1e-16 grows over twenty steps.
            assert relative_error(result[name], value) < 1e-9, name


def test_one_device_itself_equals_plain_batch_norm() -> None:
    x, target = _data()
    ours, plain = _net(), copy.deepcopy(_net())
    for index, layer in enumerate(plain):
        if isinstance(layer, SyncBatchNorm):
            kind = nn.BatchNorm2d if index < 7 else nn.BatchNorm1d
            plain[index] = kind(layer.num_features, momentum=layer.momentum, affine=layer.affine).double()

    losses = _train(ours, x, target, (8,), 0), _train(plain, x, target, (8,), 0)

    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-9, atol=0)
    torch.testing.assert_close(ours.state_dict(), plain.state_dict(), rtol=1e-9, atol=1e-12)


def _weight(rank: int, world_size: int, counts: list[int]) -> float:
    return float(loss_weight(counts[rank]))


def test_loss_weights_follow_the_share_of_samples(pool: Pool) -> None:
    assert pool.run(_weight, 3, [3, 5, 0]) == pytest.approx([9 / 8, 15 / 8, 0])


def test_loss_weight_of_nothing_at_all_is_one(pool: Pool) -> None:
    assert pool.run(_weight, 2, [0, 0]) == [1, 1]


def test_loss_weight_alone_is_one() -> None:
    assert loss_weight(7) == 1
