"""Process groups of layers, through a conversion."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch import nn

from syncnorm import norm
from syncnorm.norm import SyncBatchNorm, SyncBatchRenorm
from tests.helpers.norm.pool import Pool

GROUPED: dict[str, Callable[[dist.ProcessGroup], nn.Module]] = {
    "torch": lambda group: nn.SyncBatchNorm(3, process_group=group),
    "sync_batch": lambda group: SyncBatchNorm(3, process_group=group),
    "sync_batch_renorm": lambda group: SyncBatchRenorm(3, process_group=group),
}


def _in_pairs(rank: int, world_size: int, name: str, kind: str) -> tuple[bool, bool, bool, float]:
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    group, everybody = pairs[rank // 2], dist.new_group(list(range(world_size)))
    converted, _ = norm.convert(nn.Sequential(GROUPED[name](group)), kind)
    kept = converted[0].process_group is group
    torch.manual_seed(rank)
    mine = torch.randn(2, 3, 4, 4) * (rank + 1)
    y = converted.train()(mine)
    parts = [torch.empty_like(mine) for _ in range(world_size)]
    dist.all_gather(parts, mine)
    pair = torch.cat(parts[rank // 2 * 2 : rank // 2 * 2 + 2])
    expected = nn.BatchNorm2d(3)(pair)[rank % 2 * 2 : rank % 2 * 2 + 2]
    reverted = norm.revert(converted)[0].process_group is group
    given = norm.convert(nn.Sequential(GROUPED[name](group)), kind, group=everybody)[0][0].process_group is everybody
    return kept, reverted, given, float((y - expected).detach().abs().max())


@pytest.mark.parametrize("kind", ["sync_batch", "sync_batch_renorm"])
@pytest.mark.parametrize("name", GROUPED)
def test_process_group_is_kept(pool: Pool, name: str, kind: str) -> None:
    for kept, reverted, given, error in pool.run(_in_pairs, 4, name, kind):
        assert (kept, reverted, given) == (True, True, True)
        assert error < 1e-5  # fp32 rounding; over all workers it is 0.65
