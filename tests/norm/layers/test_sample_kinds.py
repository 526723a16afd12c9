"""FRN, EvoNorm-S0, group, layer, instance and Box-Cox against their formulas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from syncnorm import norm
from syncnorm.norm.layers.box_cox import BoxCox
from syncnorm.norm.layers.evo_norm import EvoNormS0
from syncnorm.norm.layers.filter_response_norm import FilterResponseNorm
from syncnorm.norm.layers.instance_norm import channel_groups


def test_filter_response_is_x_over_its_root_mean_square() -> None:
    layer, x = FilterResponseNorm(4, dtype=torch.float64), torch.randn(3, 4, 5, 2, dtype=torch.float64)
    with torch.no_grad():
        for parameter in (layer.weight, layer.bias, layer.tau):
            parameter.copy_(torch.randn(4))
    w, b, tau = (p.view(1, 4, 1, 1) for p in (layer.weight, layer.bias, layer.tau))

    expected = torch.maximum(w * x / (x.pow(2).mean((2, 3), keepdim=True) + 1e-6).sqrt() + b, tau)

    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 1), (3, 4, 1, 1)])
def test_filter_response_on_one_position_learns_its_eps(shape: tuple[int, ...]) -> None:
    layer, x = FilterResponseNorm(4, activation=False), torch.randn(shape)

    y = layer(x)
    y.sum().backward()

    torch.testing.assert_close(y, x / (x.pow(2) + 1e-6 + 1e-4).sqrt())
    assert layer.eps_l.grad is not None


def test_learned_eps_counts_by_its_magnitude() -> None:
    layer, x = FilterResponseNorm(4, activation=False), torch.full((3, 4), 0.1)
    expected = layer(x)
    with torch.no_grad():
        layer.eps_l.neg_()

    torch.testing.assert_close(layer(x), expected, rtol=0, atol=0)


def test_evo_s0_is_a_gated_x_over_the_deviation_of_its_group() -> None:
    layer, x = EvoNormS0(4, num_groups=2, dtype=torch.float64), torch.randn(3, 4, 5, 2, dtype=torch.float64)
    with torch.no_grad():
        layer.v.copy_(torch.randn(4))
    groups = x.view(3, 2, 2 * 10)
    std = (groups.var(2, correction=0) + 1e-5).sqrt().repeat_interleave(2, 1).view(3, 4, 1, 1)

    torch.testing.assert_close(layer(x), x * torch.sigmoid(layer.v.view(1, 4, 1, 1) * x) / std)


def test_evo_s0_without_activation_is_scale_and_shift() -> None:
    layer, x = EvoNormS0(4, activation=False), torch.randn(3, 4, 5, 2)

    torch.testing.assert_close(layer(x), x)


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (16, 8), (24, 12), (7, 1), (1, 1), (2048, 32), (48, 24)])
def test_automatic_groups_divide_and_hold_two_channels(channels: int, groups: int) -> None:
    assert channel_groups(channels) == groups


def test_layer_is_over_channels_and_positions() -> None:
    x = torch.randn(3, 4, 5, 2)

    torch.testing.assert_close(norm.build("layer", 4)(x), nn.functional.layer_norm(x, (4, 5, 2)))


def test_instance_is_torchs() -> None:
    x = torch.randn(3, 4, 5, 2)

    torch.testing.assert_close(norm.build("instance", 4)(x), nn.InstanceNorm2d(4)(x))


def _box_cox(lmbda: float) -> BoxCox:
    return BoxCox(lmbda, dtype=torch.float64)


@pytest.mark.parametrize("lmbda", [2.0, 1.0, 0.5, -1.0])
def test_box_cox_is_the_power_transform(lmbda: float) -> None:
    x = torch.rand(100, dtype=torch.float64) * 20

    torch.testing.assert_close(_box_cox(lmbda)(x), ((x + 1) ** lmbda - 1) / lmbda)


@pytest.mark.parametrize("lmbda", [0.0, 1e-12, -1e-9, 1e-5, 1e-3])
def test_box_cox_is_right_through_lambda_0(lmbda: float) -> None:
    layer = _box_cox(lmbda)
    x = torch.rand(50, dtype=torch.float64) * 20
    u = torch.log1p(x)
    # expm1(l u) / l and its derivative as series; at u < 3.1 and l <= 1e-3 six terms reach 1e-17
    terms = [1.0, 2.0, 6.0, 24.0, 120.0, 720.0]
    value = sum(lmbda**n * u ** (n + 1) / terms[n] for n in range(6))
    slope = sum(n * lmbda ** (n - 1) * u ** (n + 1) / terms[n] for n in range(1, 6))

    y = layer(x)
    y.sum().backward()

    torch.testing.assert_close(y, value, rtol=1e-12, atol=0)
    torch.testing.assert_close(layer.lmbda.grad, slope.sum(), rtol=1e-9, atol=0)


@pytest.mark.parametrize("lmbda", [2.0, 0.0, 0.3])
def test_box_cox_has_the_gradient_of_the_paper_at_zero_too(lmbda: float) -> None:
    x = torch.tensor([0.0, 0.5, 4.0], dtype=torch.float64, requires_grad=True)

    _box_cox(lmbda)(x).sum().backward()

    torch.testing.assert_close(x.grad, (x.detach() + 1) ** (lmbda - 1))


def test_box_cox_of_negative_numbers_is_yeo_and_johnsons() -> None:
    x = -torch.rand(50, dtype=torch.float64) * 5

    torch.testing.assert_close(_box_cox(0.5)(x), -((1 - x) ** 1.5 - 1) / 1.5)
    torch.testing.assert_close(_box_cox(2.0)(x), -torch.log1p(-x))


def test_box_cox_in_front_of_a_relu_is_box_cox_behind_it() -> None:
    layer, x = BoxCox(), torch.randn(100)

    torch.testing.assert_close(torch.relu(layer(x)), layer(torch.relu(x)))


@pytest.mark.parametrize("lmbda", [2.0, 0.0, 1e-3, -0.5, 0.7])
def test_box_cox_gradients_to_second_order(lmbda: float) -> None:
    x = torch.tensor([-3.0, -0.1, 1e-4, 0.2, 5.0], dtype=torch.float64, requires_grad=True)
    layer = _box_cox(lmbda)

    def run(x: Tensor, lmbda: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"lmbda": lmbda}, x)

    assert torch.autograd.gradcheck(run, (x, layer.lmbda))
    assert torch.autograd.gradgradcheck(run, (x, layer.lmbda))
