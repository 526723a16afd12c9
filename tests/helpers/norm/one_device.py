"""One training step of a layer on one device, or on ranks, and the comparison of both."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from syncnorm import norm
from tests.helpers.norm.splits import part

EXACT = {"rtol": 1e-10, "atol": 1e-10}
"""float64: the same sums in another order."""


def step(layer: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Output, gradients and buffers of one training step; the loss weighs every value differently per position."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = layer(x)
    y.pow(3).sum().backward()
    found = {"y": y.detach(), "dx": x.grad}
    found |= {f"grad.{name}": tensor.grad for name, tensor in layer.named_parameters()}
    return found | {name: buffer.clone() for name, buffer in layer.named_buffers() if "running" in name}


def split_step(rank: int, world_size: int, x: Tensor, split: tuple[int, ...]) -> dict[str, Tensor]:
    return step(norm.SyncBatchNorm(x.shape[1], dtype=x.dtype), part(x, split, rank))


def assert_equals_one_device(results: list[dict[str, Tensor]], x: Tensor) -> None:
    expected = step(nn.BatchNorm2d(x.shape[1], dtype=x.dtype), x)
    for name in ("y", "dx"):
        torch.testing.assert_close(torch.cat([found[name] for found in results]), expected[name], **EXACT)
    for name in ("grad.weight", "grad.bias"):
        torch.testing.assert_close(sum(found[name] for found in results), expected[name], **EXACT)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(results[1][name], expected[name], **EXACT)
