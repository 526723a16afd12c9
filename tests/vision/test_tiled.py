"""norm.tiled on networks that nobody here wrote: k tiles equal one volume."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from syncnorm import norm


def unet() -> nn.Module:
    from monai.networks.nets import UNet

    return UNet(3, 1, 3, channels=(4, 8, 16), strides=(2, 2), num_res_units=1, norm="instance")


def segresnet() -> nn.Module:
    from monai.networks.nets import SegResNet

    return SegResNet(3, 4, 1, 3, blocks_down=(1, 1), blocks_up=(1,), norm=("group", {"num_groups": 2}))


@pytest.mark.parametrize("build", [unet, segresnet])
def test_tiles_equal_the_volume(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = build().eval()
    x = torch.randn(1, 1, 32, 24, 28) + torch.linspace(-2, 2, 28)
    with torch.no_grad():
        whole = model(x)

    y = norm.tiled(model, x, tile=16)

    torch.testing.assert_close(y, whole, rtol=0, atol=1e-5)  # fp32
