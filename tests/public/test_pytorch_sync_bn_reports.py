"""Reports about the numbers of torch's SyncBatchNorm, on two ranks. One process on the whole batch has the answer."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from syncnorm import norm
from tests.helpers.norm.one_device import EXACT, assert_equals_one_device, split_step, step
from tests.helpers.norm.pool import Pool
from tests.helpers.norm.splits import part, relative_error


# https://github.com/pytorch/pytorch/issues/36530
def test_pytorch_36530_empty_batch_on_one_rank(ranks: Pool) -> None:
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64)

    results = ranks.run(split_step, 2, x, (4, 0))

    assert results[1]["dx"].shape == (0, 3, 5, 5)
    assert_equals_one_device(results, x)


# https://github.com/pytorch/pytorch/pull/74944
def test_pytorch_74944_empty_batches_everywhere_leave_the_statistics(ranks: Pool) -> None:
    for found in ranks.run(split_step, 2, torch.empty(0, 3, 5, 5), (0, 0)):
        assert torch.equal(found["running_mean"], torch.zeros(3))
        assert torch.equal(found["running_var"], torch.ones(3))
        assert torch.equal(found["grad.weight"], torch.zeros(3))
        assert torch.equal(found["grad.bias"], torch.zeros(3))


# https://github.com/pytorch/pytorch/pull/36382
def test_pytorch_36382_unequal_batches_count_by_their_values(ranks: Pool) -> None:
    x = torch.randn(8, 3, 5, 5, dtype=torch.float64) * torch.arange(1.0, 9.0).view(8, 1, 1, 1)

    assert_equals_one_device(ranks.run(split_step, 2, x, (7, 1)), x)


# https://github.com/pytorch/pytorch/issues/4534
def test_pytorch_4534_one_value_per_channel_and_rank_is_enough_together(ranks: Pool) -> None:
    x = torch.randn(2, 3, 1, 1, dtype=torch.float64)

    assert_equals_one_device(ranks.run(split_step, 2, x, (1, 1)), x)


def _channels_last_gradient(rank: int, world_size: int, x: Tensor) -> dict[str, Tensor]:
    layer = norm.SyncBatchNorm(x.shape[1], dtype=x.dtype)
    mine = part(x, (1, 3), rank).clone().requires_grad_()
    y = layer(mine)
    gradient = (3 * y.detach() ** 2).contiguous(memory_format=torch.channels_last)
    y.backward(gradient)
    named = {"y": y.detach(), "dx": mine.grad, "grad.weight": layer.weight.grad, "grad.bias": layer.bias.grad}
    return named | {"running_mean": layer.running_mean, "running_var": layer.running_var}


# https://github.com/pytorch/pytorch/issues/64039
def test_pytorch_64039_gradient_in_channels_last_for_a_contiguous_input(ranks: Pool) -> None:
    x = torch.randn(4, 3, 5, 6, dtype=torch.float64)

    assert_equals_one_device(ranks.run(_channels_last_gradient, 2, x), x)


# https://github.com/pytorch/pytorch/pull/57077
def test_pytorch_57077_more_than_64_channels_in_channels_last(ranks: Pool) -> None:
    x = torch.randn(4, 129, 5, 6, dtype=torch.float64).contiguous(memory_format=torch.channels_last)

    results = ranks.run(split_step, 2, x, (2, 2))

    assert results[0]["y"].is_contiguous(memory_format=torch.channels_last)
    assert results[0]["y"][:, 64:].abs().max() > 1
    assert_equals_one_device(results, x)


def _cumulative(rank: int, world_size: int, batches: list[Tensor]) -> dict[str, Tensor]:
    layer = norm.SyncBatchNorm(3, momentum=None, dtype=torch.float64)
    for batch in batches:
        layer(part(batch, (1, 3), rank))
    return dict(layer.named_buffers())


# https://github.com/pytorch/pytorch/issues/31498
def test_pytorch_31498_momentum_none_is_the_mean_over_all_batches(ranks: Pool) -> None:
    batches = [torch.randn(4, 3, 5, dtype=torch.float64) * scale for scale in (1, 2, 5)]

    for found in ranks.run(_cumulative, 2, batches):
        over = [batch.transpose(0, 1).flatten(1) for batch in batches]
        mean, var = torch.stack([b.mean(1) for b in over]).mean(0), torch.stack([b.var(1) for b in over]).mean(0)
        torch.testing.assert_close(found["running_mean"], mean, **EXACT)
        torch.testing.assert_close(found["running_var"], var, **EXACT)


def _groups_of_one(rank: int, world_size: int, x: Tensor) -> Tensor:
    groups = [dist.new_group([0]), dist.new_group([1])]
    net = nn.Sequential(nn.Sequential(nn.Sequential(nn.BatchNorm2d(3, dtype=x.dtype))))
    converted, _ = norm.convert(net, "sync_batch", group=groups[rank])
    assert converted[0][0][0].process_group is groups[rank]
    return converted(part(x, (1, 3), rank)).detach()


# https://github.com/pytorch/pytorch/pull/19240
def test_pytorch_19240_process_group_reaches_nested_layers(ranks: Pool) -> None:
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    expected = [nn.BatchNorm2d(3, dtype=x.dtype)(mine) for mine in (x[:1], x[1:])]

    for found, wanted in zip(ranks.run(_groups_of_one, 2, x), expected, strict=True):
        torch.testing.assert_close(found, wanted.detach(), **EXACT)


def _poisoned(rank: int, world_size: int) -> dict[str, Tensor]:
    layer = norm.SyncBatchNorm(3)
    x = torch.randn(4, 3, 5)
    x[1, 1, 0] = float("nan") if rank == 1 else 0.0
    layer(x)
    return dict(layer.named_buffers())


# https://github.com/pytorch/pytorch/issues/88474
def test_pytorch_88474_nan_on_one_rank_spoils_no_running_statistics(ranks: Pool) -> None:
    for found in ranks.run(_poisoned, 2):
        assert torch.isfinite(found["running_mean"]).all()
        assert torch.isfinite(found["running_var"]).all()


def _half(rank: int, world_size: int, x: Tensor) -> dict[str, Tensor]:
    layer = norm.SyncBatchNorm(3).to(torch.float16)
    return step(layer, part(x, (4, 12), rank)) | {"dtype": layer.running_mean}


# https://github.com/pytorch/pytorch/issues/96203
def test_pytorch_96203_model_in_half_precision_on_two_ranks(ranks: Pool) -> None:
    x = torch.randn(16, 3, 8, 8).to(torch.float16)

    results = ranks.run(_half, 2, x)

    expected = nn.BatchNorm2d(3, dtype=torch.float64)(x.double()).detach()
    found = torch.cat([each["y"] for each in results])
    assert found.dtype == torch.float16
    assert relative_error(found, expected) < 2e-3  # fp16: 2 ** -11, rounded twice


def _penalized(rank: int, world_size: int, x: Tensor) -> Tensor:
    mine = part(x, (1, 3), rank).clone().requires_grad_()
    y = norm.SyncBatchNorm(3, dtype=x.dtype)(mine)
    (first,) = torch.autograd.grad(y.pow(3).sum(), mine, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), mine)
    return second


# https://github.com/pytorch/pytorch/issues/61222
def test_pytorch_61222_gradient_penalty_over_ranks(ranks: Pool) -> None:
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    whole = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(nn.BatchNorm1d(3, dtype=x.dtype)(whole).pow(3).sum(), whole, create_graph=True)
    (expected,) = torch.autograd.grad(first.square().sum(), whole)

    torch.testing.assert_close(torch.cat(ranks.run(_penalized, 2, x)), expected, **EXACT)


def _on_the_cpu(rank: int, world_size: int, x: Tensor, ours: bool) -> dict[str, Tensor]:
    net = nn.BatchNorm2d(3, dtype=x.dtype)
    converted = norm.convert(net, "sync_batch")[0] if ours else nn.SyncBatchNorm.convert_sync_batchnorm(net)
    return step(converted, part(x, (1, 3), rank))


# https://github.com/pytorch/pytorch/pull/78078
def test_pytorch_78078_sync_bn_on_the_cpu(ranks: Pool) -> None:
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    with pytest.raises(ValueError, match="SyncBatchNorm expected input tensor to be on"):
        ranks.run(_on_the_cpu, 2, x, False)

    assert_equals_one_device(ranks.run(_on_the_cpu, 2, x, True), x)
