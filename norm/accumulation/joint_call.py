"""Any layer, called once with all micro-batches as one batch, as nodes of the graph.

    x_i -> Enter -> Together -> Leave_i -> y_i

For layers whose formula is not known here, and those that cut or draw over the batch. Their input and output lie on the
device for all micro-batches at once, of this layer only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Visit:
    """One micro-batch in a layer: its output, and its gradients on the way back."""

    def __init__(self) -> None:
        self.y: Tensor | None = None
        self.dy: Tensor | None = None
        self.dx: Tensor | None = None

    def enter(self, x: Tensor) -> Tensor:
        """A number that stands for x in the graph."""
        entered: Tensor = _Enter.apply(x, self)  # type: ignore[no-untyped-call]
        return entered

    def leave(self, together: Tensor) -> Tensor:
        """The output, once `call_together` has run."""
        y: Tensor = _Leave.apply(together, self)  # type: ignore[no-untyped-call]
        return y


def call_together(
    layer: nn.Module, forward: Callable[[Tensor], Tensor], brought: Sequence[tuple[Visit, Tensor, Tensor]]
) -> Tensor:
    """Call `forward` of `layer` with all micro-batches. brought: the visit, its x, and what `enter` gave."""
    visits, parts, entered = zip(*brought, strict=True)
    parameters = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    together: Tensor
    together = _Together.apply(layer, forward, visits, parts, *entered, *parameters)  # type: ignore[no-untyped-call]
    return together


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, visit):  # type: ignore[no-untyped-def]
        ctx.visit = visit
        return x.new_zeros(())

    @staticmethod
    def backward(ctx, _):  # type: ignore[no-untyped-def]
        dx, ctx.visit.dx = ctx.visit.dx, None
        return dx, None


class _Together(torch.autograd.Function):
    @staticmethod
    def forward(ctx, layer, forward, visits, parts, *graph):  # type: ignore[no-untyped-def]
        needs_dx = any(ctx.needs_input_grad[4 : 4 + len(parts)])
        whole, source = Visit(), torch.zeros((), requires_grad=needs_dx)
        whole.y = torch.cat(_of_one_size(layer, [part.detach() for part in parts]))
        num_samples = len(whole.y)
        with torch.set_grad_enabled(any(ctx.needs_input_grad)):
            y = forward(whole.leave(source))
        if not isinstance(y, Tensor) or len(y) != num_samples:
            raise ValueError(
                f"{type(layer).__name__} must give one output for each sample to take part in norm.accumulated, for a "
                f"batch of {num_samples} it gave {tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__}."
            )
        sizes = [len(part) for part in parts]
        for visit, own in zip(visits, torch.split(y.detach(), sizes), strict=True):
            visit.y = own.clone()  # a model may change it in place
        ctx.of, ctx.like = (visits, sizes), y.new_empty((0, *y.shape[1:]))
        if y.requires_grad:
            # Not y itself, which would stay on the device.
            inputs = [*([source] if needs_dx else []), *(p for p in graph[len(parts) :] if p.requires_grad)]
            ctx.call = torch.autograd.graph.get_gradient_edge(y), whole, inputs
        return y.new_zeros(())

    @staticmethod
    def backward(ctx, _):  # type: ignore[no-untyped-def]
        (visits, sizes), like = ctx.of, ctx.like
        edge, whole, inputs = ctx.call
        dy = torch.cat(
            [
                like.new_zeros((size, *like.shape[1:])) if visit.dy is None else visit.dy
                for visit, size in zip(visits, sizes, strict=True)
            ]
        )
        found = list(torch.autograd.grad(edge, inputs, dy, allow_unused=True))
        if whole.dy is not None:
            found.pop(0)
            for visit, own in zip(visits, torch.split(whole.dy, sizes), strict=True):
                visit.dx, visit.dy = own, None
            whole.dy = None
        return None, None, None, None, *[like.new_zeros(()) for _ in visits], *found


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(ctx, _, visit):  # type: ignore[no-untyped-def]
        ctx.visit = visit
        y, visit.y = visit.y, None
        return y

    @staticmethod
    def backward(ctx, dy):  # type: ignore[no-untyped-def]
        ctx.visit.dy = dy
        return dy.new_zeros(()), None


def _of_one_size(layer: nn.Module, parts: list[Any]) -> list[Any]:
    shapes = {tuple(part.shape[1:]) for part in parts}
    if len(shapes) > 1:
        raise ValueError(
            f"{type(layer).__name__} takes its micro-batches as one batch, so their inputs must have one size, got "
            f"{' and '.join(str(shape) for shape in sorted(shapes))}. Give inputs of one size, or use sync_batch."
        )
    return parts
