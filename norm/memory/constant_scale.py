"""Batch normalization by constants: its gradient is one factor a channel, so it keeps no activation for backward."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from syncnorm.norm.torch_compat import is_in_forward_mode, is_inside_functorch, is_traced, is_under_dispatch_mode


def normalize(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """F.batch_norm in evaluation, of statistics, scale and shift that need no gradient: the same bits, also backward.

    F.batch_norm keeps x, for a gradient of the scale that nobody asks for.
    """
    is_symbol = not isinstance(x, Tensor)  # of torch.fx
    if is_symbol or torch.compiler.is_compiling() or not x.requires_grad or _is_watched():
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)
    y: Tensor = _Normalize.apply(x, mean, var, weight, bias, eps)  # type: ignore[no-untyped-call]
    return y


def _is_watched() -> bool:
    """Whether each operation has to be seen; then F.batch_norm's own derivatives count."""
    return is_inside_functorch() or is_in_forward_mode() or is_under_dispatch_mode() or is_traced()


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, mean, var, weight, bias, eps):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(mean, var, weight)
        ctx.eps = eps
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx, dy):  # type: ignore[no-untyped-def]
        return _Scale.apply(dy, *ctx.saved_tensors, ctx.eps), None, None, None, None, None  # type: ignore[no-untyped-call]


class _Scale(torch.autograd.Function):
    """dy * weight / sqrt(var + eps). Linear and the same backward, so that every further derivative is right."""

    @staticmethod
    def forward(ctx, dy, mean, var, weight, eps):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(mean, var, weight)
        ctx.eps = eps
        # The operator wants an input, of which the gradient of x does not depend in evaluation.
        found = torch.ops.aten.native_batch_norm_backward(
            dy, dy, weight, mean, var, None, None, False, eps, [True, False, False]
        )
        return found[0]

    @staticmethod
    def backward(ctx, ddx):  # type: ignore[no-untyped-def]
        return _Scale.apply(ddx, *ctx.saved_tensors, ctx.eps), None, None, None, None  # type: ignore[no-untyped-call]
