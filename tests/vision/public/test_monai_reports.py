"""Reports about MONAI's networks and tensors, with the real ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from syncnorm import norm
from tests.helpers.norm.pool import Pool
from tests.helpers.norm.splits import part


def block() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)).double()


def _on_meta_tensors(rank: int, world_size: int, x: Tensor) -> dict[str, Tensor]:
    from monai.data import MetaTensor

    net = norm.convert(block(), "sync_batch")[0]
    mine = MetaTensor(part(x, (1, 3), rank).clone()).requires_grad_()
    net(mine).pow(3).sum().backward()
    plain: dict[str, Tensor] = {name: tensor.grad.as_subclass(Tensor) for name, tensor in net.named_parameters()}
    return plain | {"dx": mine.grad.as_subclass(Tensor)}


# https://github.com/Project-MONAI/MONAI/issues/5198
# https://github.com/Project-MONAI/MONAI/issues/5283
def test_monai_5198_meta_tensors_through_a_relu_in_place_on_two_ranks(ranks: Pool) -> None:
    x, net = torch.randn(4, 3, 8, 8, dtype=torch.float64), block()
    whole = x.clone().requires_grad_()
    net(whole).pow(3).sum().backward()

    results = ranks.run(_on_meta_tensors, 2, x)

    close = {"rtol": 1e-10, "atol": 1e-10}  # float64
    torch.testing.assert_close(torch.cat([found["dx"] for found in results]), whole.grad, **close)
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(sum(found[name] for found in results), parameter.grad, **close)


def unet(kind: Any) -> nn.Module:
    from monai.networks.nets import UNet

    torch.manual_seed(1)
    return UNet(
        spatial_dims=3, in_channels=1, out_channels=2, channels=(4, 8, 16), strides=(2, 2), num_res_units=1, norm=kind
    )


# https://github.com/Project-MONAI/MONAI/issues/5222
def test_monai_5222_instance_norm_may_get_the_affine_parameters_it_lacks() -> None:
    model, x = unet("instance").double(), torch.randn(2, 1, 16, 16, 16, dtype=torch.float64)
    assert not any(layer.affine for layer in model.modules() if isinstance(layer, nn.InstanceNorm3d))
    expected = model(x)

    converted, report = norm.convert(model, "instance", affine=True)
    layers = [layer for layer in converted.modules() if isinstance(layer, norm.InstanceNorm)]

    assert len(layers) == len(report) > 0
    torch.testing.assert_close(converted(x), expected, rtol=1e-8, atol=1e-8)
    converted(x).square().mean().backward()
    assert all(layer.weight.grad.abs().sum() > 0 for layer in layers)
