"""Reports about what torch's layers compute: layouts, large numbers, single positions, precision."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from syncnorm import norm
from tests.helpers.norm.splits import relative_error


def normalized(x: Tensor, dims: tuple[int, ...], eps: float = 1e-5) -> Tensor:
    """By the formula, in float64."""
    x = x.double()
    return (x - x.mean(dims, keepdim=True)) / (x.var(dims, unbiased=False, keepdim=True) + eps).sqrt()


# https://github.com/pytorch/pytorch/issues/162489
def test_pytorch_162489_variance_beyond_float32_spoils_no_running_statistics() -> None:
    x = torch.randn(8, 3, 4, 4)
    plain, layer = nn.BatchNorm2d(3), norm.SyncBatchNorm(3)
    plain(x * 1e30)
    assert torch.isinf(plain.running_var).all()  # the report: (1e30) ** 2 is no float32, and stays for ever

    layer(x * 1e30)

    assert torch.equal(layer.running_var, torch.ones(3))
    assert int(layer.num_non_finite_batches) == 1
    # As long as the variance is a float32, the result is right.
    assert relative_error(layer(x * 1e18).detach(), normalized(x * 1e18, (0, 2, 3))) < 1e-5


# https://github.com/pytorch/pytorch/issues/5410
def test_pytorch_5410_constant_channels_give_zero_whatever_their_size() -> None:
    x = (torch.rand(1, 5, 1, 1) * 2e10 - 1e10).repeat(1, 1, 10, 10)

    assert torch.equal(norm.SyncBatchNorm(5)(x), torch.zeros_like(x))


# https://github.com/pytorch/pytorch/issues/72341
def test_pytorch_72341_instance_norm_keeps_channels_last() -> None:
    x = torch.randn(4, 10, 7, 9, dtype=torch.float64).contiguous(memory_format=torch.channels_last)

    y = norm.InstanceNorm(10).double()(x)

    assert y.is_contiguous(memory_format=torch.channels_last)
    assert not nn.InstanceNorm2d(10)(x).is_contiguous(memory_format=torch.channels_last)
    assert relative_error(y.detach(), normalized(x, (2, 3))) < 1e-12


# https://github.com/pytorch/pytorch/issues/59168
def test_pytorch_59168_volumes_stay_in_channels_last_through_a_converted_block() -> None:
    block = nn.Sequential(nn.Conv3d(2, 4, 3), nn.InstanceNorm3d(4, affine=True), nn.LeakyReLU(), nn.Conv3d(4, 4, 1))
    x = torch.randn(2, 2, 6, 6, 6)
    expected = block(x)

    converted, _ = norm.convert(block.to(memory_format=torch.channels_last_3d), "instance")
    seen: list[Tensor] = []
    converted[1].register_forward_hook(lambda _module, args, y: seen.extend([args[0], y]))
    found = converted(x.contiguous(memory_format=torch.channels_last_3d))

    assert len(seen) == 2
    assert all(each.is_contiguous(memory_format=torch.channels_last_3d) for each in seen)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)  # fp32


# https://github.com/pytorch/pytorch/issues/111824
def test_pytorch_111824_group_norm_keeps_channels_last() -> None:
    x = torch.randn(4, 32, 24, 24, dtype=torch.float64).contiguous(memory_format=torch.channels_last)

    y = norm.build("group", 32, num_groups=8).double()(x)

    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, F.group_norm(x, 8), rtol=1e-10, atol=1e-10)


# https://github.com/pytorch/pytorch/issues/45687
@pytest.mark.parametrize("samples", [1, 2])
def test_pytorch_45687_instance_norm_of_one_position_does_not_depend_on_the_batch(samples: int) -> None:
    layer, x = norm.InstanceNorm(3), torch.rand(samples, 3, 1, 1)

    with pytest.raises(ValueError, match="Instance normalization needs more than one position per channel"):
        layer(x)


# https://github.com/pytorch/pytorch/issues/61924
def test_pytorch_61924_mixed_precision_without_affine_parameters() -> None:
    model, _ = norm.convert(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, affine=False)), "sync_batch")
    x = torch.randn(4, 3, 8, 8)
    expected = normalized(model[0](x).detach(), (0, 2, 3))

    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(x)
    y.float().square().sum().backward()

    assert relative_error(y.detach(), expected) < 2e-2  # bf16
    assert torch.isfinite(model[0].weight.grad).all()


# https://github.com/pytorch/pytorch/issues/20634
def test_pytorch_20634_bfloat16_inputs_with_float32_parameters() -> None:
    layer, x = norm.SyncBatchNorm(3), torch.randn(16, 3, 8, 8).to(torch.bfloat16)

    y = layer(x)

    assert (y.dtype, layer.running_mean.dtype) == (torch.bfloat16, torch.float32)
    # The statistics are those of the bf16 values, in fp32: only the result is rounded to bf16.
    torch.testing.assert_close(layer.running_mean.double() * 10, x.double().mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    assert relative_error(y.detach(), normalized(x, (0, 2, 3))) < 2e-2


class _Tensor(torch.Tensor):
    """A subclass such as MetaTensor of MONAI."""


# https://github.com/pytorch/pytorch/issues/86456
def test_pytorch_86456_subclass_of_tensor_with_a_relu_in_place_behind() -> None:
    model = nn.Sequential(norm.SyncBatchNorm(3, dtype=torch.float64), nn.ReLU(inplace=True))
    plain = nn.Sequential(nn.BatchNorm2d(3, dtype=torch.float64), nn.ReLU(inplace=True))
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    mine, theirs = x.clone().as_subclass(_Tensor).requires_grad_(), x.clone().requires_grad_()

    model(mine).pow(3).sum().backward()
    plain(theirs).pow(3).sum().backward()

    torch.testing.assert_close(mine.grad.as_subclass(torch.Tensor), theirs.grad, rtol=1e-10, atol=1e-10)


# https://github.com/NVIDIA/apex/issues/1768
def test_apex_1768_channels_that_are_no_power_of_two_in_large_channels_last_pictures() -> None:
    x = torch.rand(1, 65, 100, 100).contiguous(memory_format=torch.channels_last)
    layer = norm.SyncBatchNorm(65, momentum=1.0)

    layer(x)

    var, mean = torch.var_mean(x.double(), (0, 2, 3))
    torch.testing.assert_close(layer.running_mean.double(), mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(layer.running_var.double(), var, rtol=1e-5, atol=0)


# https://github.com/pytorch/pytorch/issues/62471
def test_pytorch_62471_checkpointed_segment_counts_each_batch_once() -> None:
    from torch.utils.checkpoint import checkpoint

    plain = nn.Sequential(nn.BatchNorm1d(10, momentum=0.001), nn.Linear(10, 1))
    ours, _ = norm.convert(copy.deepcopy(plain), "sync_batch")
    for index in range(5):
        x = (torch.ones(2, 10) * index + torch.randn(2, 10)).requires_grad_()
        plain(x).mean().backward()
        checkpoint(ours, x, use_reentrant=True).mean().backward()

    assert int(ours[0].num_batches_tracked) == 5
    torch.testing.assert_close(ours[0].running_mean, plain[0].running_mean)
    torch.testing.assert_close(ours[0].running_var, plain[0].running_var)
