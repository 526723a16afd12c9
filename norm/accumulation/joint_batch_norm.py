"""Batch normalization of several micro-batches by the statistics of all of them, as nodes of the graph.

    x_i -> Measure -> row_i -> Share -> row -> Normalize(x_i, row) -> y_i

Measure and Normalize belong to a micro-batch, Share to all. Rows are (count, C means, C m2s). Backward, the same edges
carry sums instead of derivatives: Normalize sends (sum dy, sum dy * (x - mean)) of its micro-batch, autograd adds them
up and runs Share once all have come, which adds those of the other workers and sends the total to each Measure. That
turns it, with the dy that Normalize has left there, into the gradient of x. So the order that autograd keeps anyway is
the lock-step of the backward pass. What workers exchange is what `SyncBatchNorm` exchanges for one batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from syncnorm.norm.accumulation import plain_kernels
from syncnorm.norm.backends.arguments import check_request, has_plain_type
from syncnorm.norm.backends.dispatch import chosen_kernels
from syncnorm.norm.backends.interface import Request
from syncnorm.norm.backends.memory_layout import like
from syncnorm.norm.distributed.collectives import peek_rows
from syncnorm.norm.statistics.moments import as_row, merge_rows, of_row


class Shared(NamedTuple):
    """What all micro-batches get: the merged row, and scale and shift."""

    row: Tensor
    weight: Tensor | None
    bias: Tensor | None


class Pass:
    """One micro-batch on its way through a layer.

    hooks: through which tensors wait for backward; None: they wait as they are. unpacks_twice: whether what is saved
    may be read twice, which activation checkpointing forbids.
    """

    def __init__(self, x: Tensor, eps: float, hooks: tuple[Any, Any] | None, *, unpacks_twice: bool) -> None:
        self.eps, self.unpacks_twice = eps, unpacks_twice
        self.pack: Callable[[Tensor], Any]
        self.unpack: Callable[[Any], Tensor]
        self.pack, self.unpack = hooks or (_as_it_is, _as_it_is)
        self.kernels: Any = chosen_kernels(x) or plain_kernels
        self.left: _Left | None = None
        self.shared: tuple[Tensor, Tensor | None] | None = None

    def measure(self, x: Tensor) -> Tensor:
        """The row of a dense x."""
        row: Tensor = _Measure.apply(x, self)  # type: ignore[no-untyped-call]
        return row

    def normalize(self, x: Tensor, row: Tensor, shared: Shared) -> Tensor:
        """row: what `measure` gave for x. Raises: RuntimeError where scale or shift do not fit x."""
        check_request(x, Request(shared.weight, shared.bias, self.eps, None, None, None, None))
        if not (has_plain_type(shared.weight) and has_plain_type(shared.bias)):
            self.kernels = plain_kernels
        y: Tensor = _Normalize.apply(x, *shared, self, row.grad_fn)  # type: ignore[no-untyped-call]
        return y


def _as_it_is(tensor: Any) -> Any:
    return tensor


class _Left(NamedTuple):
    """What Normalize leaves for Measure. x: None where it is read a second time. dy: packed."""

    x: Tensor | None
    dy: Any
    sums: Tensor
    row: Tensor
    weight: Tensor | None


def share(layer: nn.Module, group: dist.ProcessGroup | None, rows: list[Tensor], *, exchanges: bool) -> Tensor:
    """The row of all micro-batches and, if the layer exchanges, of all workers of `group`."""
    row: Tensor = _Share.apply(layer, group, exchanges, *rows)  # type: ignore[no-untyped-call]
    return row


class _Share(torch.autograd.Function):
    @staticmethod
    def forward(ctx, layer, group, exchanges, *rows):  # type: ignore[no-untyped-def]
        ctx.call = layer, group, exchanges, len(rows)
        row = as_row(merge_rows(torch.stack(rows)))
        return as_row(merge_rows(peek_rows(row, group, layer, "forward"))) if exchanges else row

    @staticmethod
    def backward(ctx, sums):  # type: ignore[no-untyped-def]
        layer, group, exchanges, num_rows = ctx.call
        if exchanges:
            of_all = peek_rows(sums[:-1].contiguous(), group, layer, "backward").sum(0)
            sums = torch.cat([of_all, sums[-1:]])
        return None, None, None, *[sums] * num_rows


class _Measure(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, one):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x)
        ctx.one = one
        return one.kernels.measure(x)

    @staticmethod
    def backward(ctx, of_all):  # type: ignore[no-untyped-def]
        one, left = ctx.one, ctx.one.left
        one.left = None
        x = ctx.saved_tensors[0] if left is None or left.x is None else left.x
        if left is None:  # the loss does not depend on the output of this one
            left = _Left(x, one.pack(torch.zeros_like(x)), torch.zeros_like(of_all[:-1]), *one.shared)
        rows = of_all[:-1].contiguous().unsqueeze(0)
        return one.kernels.finish_backward(x, one.unpack(left.dy), left.row, left.sums, rows, one.eps, left.weight)[
            0
        ], None


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, row, weight, bias, one, measured):  # type: ignore[no-untyped-def]
        request = Request(weight, bias, one.eps, None, None, None, None)
        y, _ = one.kernels.finish_forward(x, row.unsqueeze(0), request)
        ctx.one, ctx.measured = one, measured
        one.shared = (
            row.detach(),
            None if weight is None else weight.detach(),
        )  # no reference to the graph, which owns it
        ctx.dtypes = None if weight is None else weight.dtype, None if bias is None else bias.dtype
        # One copy of x is enough: Measure has it if it is in the graph.
        ctx.save_for_backward(None if measured is not None else x, row, weight)
        return y

    @staticmethod
    def backward(ctx, dy):  # type: ignore[no-untyped-def]
        if torch.is_grad_enabled():
            raise RuntimeError(
                "norm.accumulated gives first derivatives only, got create_graph=True. Use one batch for a second one."
            )
        one = ctx.one
        x, row, weight = ctx.saved_tensors
        if ctx.measured is not None:
            (x,) = ctx.measured.saved_tensors
        dy = like(dy, x)
        sums = one.kernels.gradient_sums(x, dy, row)
        if ctx.measured is not None:
            one.left = _Left(None if one.unpacks_twice else x, one.pack(dy), sums, row, weight)
        message = torch.cat([sums, sums.new_zeros(1)]) if ctx.needs_input_grad[1] else None
        C = x.shape[1]
        invstd = torch.rsqrt(of_row(row).biased_variance + one.eps)
        by_weight, by_bias = sums[C:] * invstd, sums[:C]
        return (
            None,
            message,
            by_weight.to(ctx.dtypes[0]) if ctx.needs_input_grad[2] else None,
            by_bias.to(ctx.dtypes[1]) if ctx.needs_input_grad[3] else None,
            None,
            None,
        )
