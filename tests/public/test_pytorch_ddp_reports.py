"""Reports about torch's SyncBatchNorm under compile, DistributedDataParallel and checkpointing, on two ranks."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from syncnorm import norm
from tests.helpers.norm.one_device import EXACT, assert_equals_one_device, step
from tests.helpers.norm.pool import Pool
from tests.helpers.norm.splits import part


def _compiled(rank: int, world_size: int, x: Tensor) -> dict[str, Tensor]:
    torch._dynamo.reset()
    layer = norm.convert(nn.BatchNorm2d(3, dtype=x.dtype), "sync_batch")[0]
    return (
        step(torch.compile(layer, fullgraph=True, backend="aot_eager"), part(x, (1, 3), rank))
        | {f"grad.{name}": tensor.grad for name, tensor in layer.named_parameters()}
        | {name: buffer.clone() for name, buffer in layer.named_buffers()}
    )


# https://github.com/pytorch/pytorch/issues/161302
def test_pytorch_161302_sync_bn_under_compile(ranks: Pool) -> None:
    x = torch.randn(4, 3, 5, 6, dtype=torch.float64)

    assert_equals_one_device(ranks.run(_compiled, 2, x), x)


def _compiled_ddp(rank: int, world_size: int, x: Tensor) -> dict[str, Tensor]:
    torch._dynamo.reset()
    net = norm.convert(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).double(), "sync_batch")[0]
    for parameter in net.parameters():
        nn.init.constant_(parameter, 0.5)
    run = torch.compile(DistributedDataParallel(net), backend="aot_eager")
    # DDP averages gradients over ranks, so a sum of losses needs the number of ranks.
    (run(part(x, (1, 3), rank)).pow(3).sum() * world_size).backward()
    return {name: tensor.grad for name, tensor in net.named_parameters()} | dict(net.named_buffers())


# https://github.com/pytorch/pytorch/issues/100239
def test_pytorch_100239_compile_of_ddp_with_converted_layers(ranks: Pool) -> None:
    x = torch.randn(4, 3, 5, 6, dtype=torch.float64)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).double()
    for parameter in net.parameters():
        nn.init.constant_(parameter, 0.5)
    net(x).pow(3).sum().backward()
    expected = {name: tensor.grad for name, tensor in net.named_parameters()} | dict(net.named_buffers())

    for found in ranks.run(_compiled_ddp, 2, x):
        torch.testing.assert_close({name: found[name] for name in expected}, expected, **EXACT)


def _two_forwards(rank: int, world_size: int, x: Tensor) -> dict[str, Tensor]:
    net = norm.convert(nn.Sequential(nn.BatchNorm2d(3), nn.Tanh()).double(), "sync_batch")[0]
    run = DistributedDataParallel(net)
    fake, real = part(x[:4], (1, 3), rank), part(x[4:], (3, 1), rank)
    ((run(fake).pow(3).sum() - run(real).pow(3).sum()) * world_size).backward()
    return {name: tensor.grad for name, tensor in net.named_parameters()} | dict(net.named_buffers())


# https://github.com/pytorch/pytorch/issues/175024
def test_pytorch_175024_two_forwards_of_a_discriminator_before_one_backward(ranks: Pool) -> None:
    x = torch.randn(8, 3, 5, 5, dtype=torch.float64)
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Tanh()).double()
    (net(x[:4]).pow(3).sum() - net(x[4:]).pow(3).sum()).backward()
    expected = {name: tensor.grad for name, tensor in net.named_parameters()} | dict(net.named_buffers())

    for found in ranks.run(_two_forwards, 2, x):
        torch.testing.assert_close({name: found[name] for name in expected}, expected, **EXACT)


def _checkpointed(rank: int, world_size: int, x: Tensor) -> dict[str, Tensor]:
    layer = norm.SyncBatchNorm(3, dtype=x.dtype)
    mine = part(x, (1, 3), rank).clone().requires_grad_()
    y = checkpoint(layer, mine, use_reentrant=False)
    y.pow(3).sum().backward()
    gradients = {f"grad.{name}": tensor.grad for name, tensor in layer.named_parameters()}
    return {"y": y.detach(), "dx": mine.grad} | gradients | dict(layer.named_buffers())


# https://github.com/pytorch/pytorch/issues/96136
def test_pytorch_96136_activation_checkpointing_updates_statistics_once(ranks: Pool) -> None:
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64)

    results = ranks.run(_checkpointed, 2, x)

    assert all(found["num_batches_tracked"] == 1 for found in results)
    assert_equals_one_device(results, x)


class _Video(nn.Module):
    """The second part runs from the second frame on."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = norm.SyncBatchNorm(3), norm.SyncBatchNorm(3)

    def forward(self, x: Tensor, frame: int) -> Tensor:
        x = self.first(x)
        return self.second(x) if frame else self.first(x)


def _skips(rank: int, world_size: int) -> None:
    _Video()(torch.randn(4, 3), frame=rank)


# https://github.com/pytorch/pytorch/issues/44957
def test_pytorch_44957_module_not_called_on_one_rank_is_named_in_seconds(ranks: Pool) -> None:
    began = time.monotonic()

    for ok, error, _ in ranks.outcomes(_skips, 2):
        assert not ok
        assert isinstance(error, norm.ExchangeError)
        assert "rank 0 is in first (forward, call 2" in str(error)
        assert "rank 1 is in second (forward, call 1" in str(error)
    assert time.monotonic() - began < 30  # torch waits for the timeout of the process group
