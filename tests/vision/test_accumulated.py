"""norm.accumulated on networks that nobody here wrote: k micro-batches equal one batch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from syncnorm import norm
from tests.helpers.norm.splits import relative_error


def resnet18() -> nn.Module:
    import torchvision

    return torchvision.models.resnet18(num_classes=10)


def regnet() -> nn.Module:
    """Its BatchNormAct2d is a batch normalization with an activation inside."""
    import timm

    return timm.create_model("regnetx_002", num_classes=10)


def unet_3d() -> nn.Module:
    from monai.networks.nets import UNet

    return UNet(3, 1, 10, channels=(4, 8, 16), strides=(2, 2), num_res_units=1, norm="batch")


def segresnet() -> nn.Module:
    from monai.networks.nets import SegResNet

    return SegResNet(2, 4, 3, 10, blocks_down=(1, 1), blocks_up=(1,), norm=("batch", {}))


@pytest.mark.parametrize("memory", ["device", "recompute"])
@pytest.mark.parametrize(
    ("build", "shape"),
    [(resnet18, (3, 32, 32)), (regnet, (3, 32, 32)), (unet_3d, (1, 8, 8, 8)), (segresnet, (3, 16, 16))],
)
def test_micro_batches_equal_one_batch(build: Callable[[], nn.Module], shape: tuple[int, ...], memory: Any) -> None:
    torch.manual_seed(0)
    model = build().double()
    one = copy.deepcopy(model)
    x = torch.randn(6, *shape, dtype=torch.float64)
    y = torch.randint(10, (6, *(shape[1:] if "net_3d" in build.__name__ or "seg" in build.__name__ else ())))
    cross_entropy(one(x), y).backward()

    norm.accumulated(model, cross_entropy, [(x[:2], y[:2]), (x[2:3], y[2:3]), (x[3:], y[3:])], memory=memory).backward()

    largest = max(float(p.grad.abs().max()) for p in one.parameters() if p.grad is not None)
    for (name, p), q in zip(model.named_parameters(), one.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert float((p.grad - q.grad).abs().max()) < 1e-9 * largest, name
    for (name, found), expected in zip(model.named_buffers(), one.buffers(), strict=True):
        assert relative_error(found, expected) < 1e-9, name
