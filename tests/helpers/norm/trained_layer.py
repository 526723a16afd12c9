"""What some steps of one layer leave behind, to compare two ways of computing it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def trained(layer: nn.Module, x: Tensor, dy: Tensor, steps: int) -> list[Tensor]:
    """Outputs and gradients of every step, and the buffers after the last one."""
    found: list[Tensor] = []
    for _ in range(steps):
        leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
        y = layer(leaf)
        found += [y.detach(), *torch.autograd.grad(y, [leaf, *layer.parameters()], dy)]
    return found + [buffer.clone() for buffer in layer.buffers()]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    """The same bits, in the same dtype and layout."""
    for ours, its in zip(found, expected, strict=True):
        assert torch.equal(ours.nan_to_num(), its.nan_to_num())
        assert (ours.dtype, ours.stride()) == (its.dtype, its.stride())
