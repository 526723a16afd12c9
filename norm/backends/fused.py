"""Batch normalization as one node of the graph, on kernels that read each tensor as few times as they can."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from norm.backends import compiled, native, reference
from norm.backends.dense import dense, like
from norm.collectives import peek_rows
from norm.moments import Exchanged


def kernels_for(x: Tensor) -> Any:
    """The module of kernels for x: compiled, native, or None where only the reference composition works."""
    if x.device.type != "cpu" or (type(x) is not Tensor and not isinstance(x, nn.Parameter)):
        return None
    return next((kernels for kernels in (compiled, native) if kernels.takes(x)), None)


def batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    group: dist.ProcessGroup | None,
    layer: nn.Module | None,
    known: Exchanged | None,
) -> tuple[Tensor, Exchanged]:
    """The output and what was exchanged for it; `known` is that of an earlier call for the same x."""
    kernels = kernels_for(x)
    x = dense(x)
    if known is None:
        local = kernels.measure(x.detach())
        known = Exchanged(local, kernels.merge(peek_rows(local, group, layer, "forward")))
    y: Tensor = _Normalize.apply(x, weight, bias, known, eps, group, layer)  # type: ignore[no-untyped-call]
    return y, known


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, exchanged, eps, group, layer):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, weight, bias)
        ctx.exchanged, ctx.eps, ctx.group, ctx.layer = exchanged, eps, group, layer
        return kernels_for(x).normalize(x, exchanged.merged, eps, weight, bias)

    @staticmethod
    def backward(ctx, dy):  # type: ignore[no-untyped-def]
        x, weight, bias = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _differentiable_gradients(  # type: ignore[no-untyped-call]
                ctx, x, weight, bias, dy
            )
        row = ctx.exchanged.merged
        kernels = kernels_for(x)
        dy = like(dy, x)
        local = kernels.gradient_sums(x, dy, row)
        total = local
        if ctx.needs_input_grad[0]:
            total = kernels.add(peek_rows(local, ctx.group, ctx.layer, "backward"))
        dx, by_weight, by_bias = kernels.gradients(x, dy, row, ctx.eps, local, total, weight)
        return (
            dx,
            by_weight.to(weight.dtype) if ctx.needs_input_grad[1] else None,
            by_bias.to(bias.dtype) if ctx.needs_input_grad[2] else None,
            *[None] * 4,
        )


def _differentiable_gradients(ctx, x, weight, bias, dy):  # type: ignore[no-untyped-def]
    """With create_graph: the gradients of the reference composition, which can be differentiated again."""
    y, _ = reference.batch_norm(x, weight, bias, ctx.eps, ctx.group, ctx.layer, ctx.exchanged)
    wanted = [t for t, needed in zip((x, weight, bias), ctx.needs_input_grad, strict=False) if needed]
    found = iter(torch.autograd.grad(y, wanted, dy, create_graph=True))
    return *[next(found) if needed else None for needed in ctx.needs_input_grad[:3]], *[None] * 4
