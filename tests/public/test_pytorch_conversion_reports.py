"""Reports about converting and reverting torch's layers, and about folding them into convolutions."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from syncnorm import norm
from tests.helpers.norm.models import trained
from tests.helpers.norm.norm_act import BatchNormAct2d
from tests.helpers.norm.splits import relative_error

FOLDED = 1e-12
"""float64: one rounding of each folded weight, and sums as long as the fan-in."""


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2))


# https://github.com/pytorch/pytorch/pull/111998
def test_pytorch_111998_layers_in_eval_mode_stay_in_eval_mode() -> None:
    model = trained(net()).train()
    model[1].eval()
    before = copy.deepcopy(model[1].state_dict())

    converted, _ = norm.convert(model, "sync_batch")
    converted(torch.randn(4, 3, 8, 8))

    assert [converted[1].training, converted[4].training] == [False, True]
    torch.testing.assert_close(dict(converted[1].state_dict()), dict(before), rtol=0, atol=0)


# https://github.com/pytorch/pytorch/pull/22569
def test_pytorch_22569_frozen_weights_stay_frozen() -> None:
    model = net()
    model[1].requires_grad_(False)

    converted, _ = norm.convert(model, "sync_batch")

    assert not any(parameter.requires_grad for parameter in converted[1].parameters())
    assert all(parameter.requires_grad for parameter in converted[4].parameters())


class _Clipped(nn.BatchNorm2d):
    """A subclass whose forward no conversion can know."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).clamp(-1, 1)


# https://github.com/pytorch/pytorch/issues/187298
def test_pytorch_187298_subclass_with_a_forward_of_its_own_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), _Clipped(4))
    before = [type(module) for module in model.modules()]

    with pytest.raises(ValueError, match="1 is a _Clipped, which may do more than normalize"):
        norm.convert(model, "sync_batch")

    assert [type(module) for module in model.modules()] == before


# https://github.com/huggingface/pytorch-image-models/issues/1254
def test_timm_1254_activation_inside_a_batch_norm_is_kept() -> None:
    layer = BatchNormAct2d(4, act=nn.ReLU())
    model = trained(nn.Sequential(nn.Conv2d(3, 4, 3), layer)).double().eval()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    expected = model(x)
    dropped = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))(x)
    assert float(dropped.detach().min()) < 0  # the report: torch's conversion loses it

    found = norm.convert(model, "sync_batch")[0](x)

    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


# https://github.com/pytorch/pytorch/issues/41081
def test_pytorch_41081_converted_layers_become_batch_norm_again() -> None:
    model, x = trained(net()).double(), torch.randn(4, 3, 8, 8, dtype=torch.float64)
    converted, _ = norm.convert(copy.deepcopy(model), "sync_batch")
    converted.train()(x)
    model.train()(x)

    reverted = norm.revert(converted).eval()

    assert [type(layer) for layer in reverted] == [type(layer) for layer in model]
    with pytest.raises(ValueError, match="expected 4D input"):  # the check of dimensions is back, too
        reverted[1](x[0, :, 0])
    torch.testing.assert_close(reverted(x), model.eval()(x), rtol=1e-10, atol=1e-10)


# https://github.com/pytorch/pytorch/issues/110361
def test_pytorch_110361_checkpoint_without_a_counter_loads_into_a_converted_layer() -> None:
    state = {name: tensor for name, tensor in trained(net()).state_dict().items() if "num_batches" not in name}
    converted, _ = norm.convert(net(), "sync_batch")

    converted.load_state_dict(state)  # a plain dict has no metadata, as files from before the counter

    torch.testing.assert_close(converted[1].running_var, state["1.running_var"], rtol=0, atol=0)
    converted.train()(torch.randn(4, 3, 8, 8))
    assert int(converted[1].num_batches_tracked) == 1


class _Reused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.bn(self.conv(x)), self.conv(y)


# https://github.com/pytorch/pytorch/issues/197539
def test_pytorch_197539_convolution_that_is_normalized_on_one_path_only() -> None:
    model = trained(_Reused()).double().eval()
    x, y = torch.randn(2, 2, 3, 8, 8, dtype=torch.float64)
    expected = model(x, y)

    folded, report = norm.fold(model)

    for found, wanted in zip(folded(x, y), expected, strict=True):
        assert relative_error(found.detach(), wanted.detach()) < FOLDED
    assert report[0].into is None
    assert report[0].reason


class _Sum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.conv1(x) + self.bn1(self.conv1(y))


# https://github.com/pytorch/pytorch/issues/104593
def test_pytorch_104593_convolution_used_in_both_terms_of_a_sum() -> None:
    model = trained(_Sum()).double().eval()
    x, y = torch.rand(2, 64, 1, 8, 8, dtype=torch.float64)

    assert relative_error(norm.fold(model)[0](x, y).detach(), model(x, y).detach()) < FOLDED


# https://github.com/pytorch/pytorch/issues/180995
@pytest.mark.parametrize(("channels", "groups"), [((4, 4), 2), ((4, 6), 2), ((8, 12), 4), ((6, 6), 6)])
def test_pytorch_180995_transposed_convolution_in_groups(channels: tuple[int, int], groups: int) -> None:
    conv = nn.ConvTranspose2d(*channels, 3, padding=1, groups=groups, bias=False)
    model = trained(nn.Sequential(conv, nn.BatchNorm2d(channels[1]))).double().eval()
    x = torch.randn(2, channels[0], 5, 5, dtype=torch.float64)

    folded, report = norm.fold(model)

    assert report[0].into == "0"
    assert relative_error(folded(x).detach(), model(x).detach()) < FOLDED


# https://github.com/pytorch/pytorch/issues/19916
def test_pytorch_19916_eval_equals_train_once_the_statistics_are_those_of_the_batch() -> None:
    """torch's running variance is divided by n - 1, the batch by n: with 3 samples the outputs differ by a fifth."""
    x = torch.tensor([[1.0, 4.0, 0.0], [2.0, 2.0, 1.0], [4.0, 3.0, 3.0]], dtype=torch.float64)
    plain = nn.BatchNorm1d(3, momentum=1.0, dtype=torch.float64)
    train = plain(x)
    assert relative_error(plain.eval()(x).detach(), train.detach()) > 0.15

    layer = norm.SyncBatchNorm(3, eps=0.0, dtype=torch.float64)
    found = norm.recompute_population_statistics(layer, [x]).layers[""]

    torch.testing.assert_close(found.mean, x.mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(found.var, x.var(0), rtol=1e-12, atol=0)
    # Over 3 values the two variances are apart by 3 / 2; over the 300 of a data set by 300 / 299.
    many = x.repeat(100, 1)
    norm.recompute_population_statistics(layer, [many])
    torch.testing.assert_close(layer.eval()(many), layer.train()(many), rtol=2e-3, atol=1e-12)
