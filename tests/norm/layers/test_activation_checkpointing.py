from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from syncnorm.norm import SyncBatchNorm
from syncnorm.norm.backends.dispatch import use_backend
from syncnorm.norm.layers.batch_renorm import BatchRenorm, RenormSchedule, SyncBatchRenorm
from tests.helpers.norm.pool import Pool
from tests.helpers.norm.splits import counted

SCHEDULE = RenormSchedule(r_max=1.5, d_max=0.5, warmup_steps=0, r_max_steps=1, d_max_steps=1)
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "sync_batch": lambda: SyncBatchNorm(4, dtype=torch.float64),
    "sync_batch_renorm": lambda: SyncBatchRenorm(4, dtype=torch.float64, schedule=SCHEDULE),
    "batch_renorm": lambda: BatchRenorm(4, dtype=torch.float64, schedule=SCHEDULE),
}


def _net(kind: str) -> nn.Sequential:
    torch.manual_seed(0)
    shared = LAYERS[kind]()
    # The shared layer runs twice in one segment, on inputs of the same shape.
    return nn.Sequential(nn.Linear(4, 4).double(), shared, nn.ReLU(), nn.Linear(4, 4).double(), shared, nn.Tanh())


def _trained(rank: int, world_size: int, kind: str, how: str, backend: Any) -> tuple[list[str], dict[str, Tensor]]:
    net = _net(kind)
    generator = torch.Generator().manual_seed(rank)
    batches = [torch.randn(5, 4, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(2)]
    calls: list[str] = []
    with use_backend(backend), counted(calls):
        for _ in range(2):
            # Two forwards before two backwards, the later first: the order of recomputation is not that of the calls.
            losses = []
            for x in batches:
                y = net(x) if how == "plain" else checkpoint(net, x, use_reentrant=how == "reentrant")
                losses.append(y.square().sum())
            for loss in reversed(losses):
                loss.backward()
    found = {f"grad.{name}": parameter.grad for name, parameter in net.named_parameters()}
    return calls, found | net.state_dict() | {"dx": batches[0].grad}


# https://github.com/pytorch/pytorch/issues/96136
@pytest.mark.parametrize(
    ("kind", "backend"),
    [("sync_batch", "fused"), ("sync_batch", "reference"), ("sync_batch_renorm", "fused"), ("batch_renorm", "fused")],
)
@pytest.mark.parametrize("how", ["reentrant", "non-reentrant"])
def test_checkpointed_net_updates_and_exchanges_once(pool: Pool, how: str, kind: str, backend: Any) -> None:
    expected = pool.run(_trained, 2, kind, "plain", backend)

    found = pool.run(_trained, 2, kind, how, backend)

    for (calls, values), (plain_calls, plain_values) in zip(found, expected, strict=True):
        assert calls == plain_calls
        assert values.keys() == plain_values.keys()
        for name, value in plain_values.items():
            torch.testing.assert_close(values[name], value, rtol=1e-12, atol=1e-12, msg=name)


def test_nothing_is_kept_once_the_graph_is_gone() -> None:
    from syncnorm.norm.layers.activation_checkpointing import _CALLS

    layer = SyncBatchNorm(3)
    for _ in range(5):
        checkpoint(layer, torch.randn(4, 3, requires_grad=True), use_reentrant=False).sum().backward()

    assert sum(ref() is not None for _, ref in _CALLS[layer].with_graph) == 0
