"""A convolution reduced to where it looks spreads NaN as the real one does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from syncnorm.norm.tiling.nan_convolutions import spread
from syncnorm.norm.tiling.receptive_field import measure
from tests.helpers.norm.unet import UNet


@pytest.mark.parametrize(
    ("function", "sides", "kernel", "options"),
    [
        (F.conv1d, (20,), (3,), {"padding": 1}),
        (F.conv2d, (12, 14), (3, 5), {"padding": (1, 2), "stride": (2, 1)}),
        (F.conv2d, (12, 14), (3, 3), {"padding": "same", "dilation": 3}),
        (F.conv2d, (12, 14), (1, 1), {"groups": 2}),
        (F.conv3d, (8, 9, 10), (3, 3, 3), {"padding": 1, "groups": 4}),
        (F.conv_transpose1d, (10,), (4,), {"stride": 2, "padding": 1}),
        (F.conv_transpose2d, (6, 7), (3, 3), {"stride": 2, "padding": 1, "output_padding": 1, "groups": 2}),
        (F.conv_transpose3d, (4, 5, 6), (2, 2, 2), {"stride": 2, "dilation": 2}),
    ],
)
def test_nan_goes_where_the_kernel_takes_it(function: Any, sides: Any, kernel: Any, options: dict[str, Any]) -> None:
    groups = options.get("groups", 1)
    x = torch.randn(2, 4, *sides, dtype=torch.float64)
    x[1, 2][tuple(side // 2 for side in sides)] = torch.nan
    channels = (4, 8 // groups) if "transpose" in function.__name__ else (8, 4 // groups)
    weight = torch.randn(*channels, *kernel, dtype=torch.float64)

    y, real = spread(function, (x, weight, torch.zeros(8).double()), options), function(x, weight, **options)

    assert y is not None
    assert y.shape == real.shape
    assert torch.equal(y.isnan().any(1), real.isnan().any(1))
    assert bool((y[0] == 1).all())


def test_what_is_no_convolution_is_left_alone() -> None:
    assert spread(F.relu, (torch.ones(1),), {}) is None


def test_finding_the_reach_costs_no_more_for_a_wide_network() -> None:
    """A tile of one would cost as much as a step of training, and memory for the columns of its kernels."""
    costs = []
    for width in (4, 32):
        with FlopCounterMode(display=False) as counter:
            measure(UNet(3, width=width).eval(), torch.zeros(1, 2, 64, 64, 64), (16, 16, 16), torch.device("cpu"))
        costs.append(counter.get_total_flops())

    assert costs[0] == costs[1] > 0
