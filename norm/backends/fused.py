"""Batch normalization as one node of the graph, on kernels that read each tensor as few times as they can."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from syncnorm.norm.backends import (
    cpu_aten as native,
)
from syncnorm.norm.backends import (
    cpu_compiled as compiled,
)
from syncnorm.norm.backends import (
    cuda_aten as cuda_native,
)
from syncnorm.norm.backends import (
    cuda_triton as cuda,
)
from syncnorm.norm.backends import (
    reference,
    triton_launches,
)
from syncnorm.norm.backends.arguments import has_plain_type
from syncnorm.norm.backends.interface import Request
from syncnorm.norm.backends.memory_layout import dense, like
from syncnorm.norm.distributed.collectives import exchange_by_group, exchange_in_memory, peek_rows
from syncnorm.norm.native import extension
from syncnorm.norm.statistics.moments import Exchanged
from syncnorm.norm.torch_compat import is_batched

_KERNELS: dict[str, tuple[Any, ...]] = {"cpu": (compiled, native), "cuda": (cuda, cuda_native)}  # best first


def kernels_for(x: Tensor) -> Any:
    """The module of kernels for x, or None where only the reference composition works.

    On one kind of device all of them send the same rows, so that workers with different ones may meet.
    """
    if not has_plain_type(x) or x.layout is not torch.strided:
        return None
    return next((kernels for kernels in _KERNELS.get(x.device.type, ()) if kernels.takes(x)), None)


def batch_norm(x: Tensor, request: Request) -> tuple[Tensor, Exchanged]:
    """See interface.BatchNorm."""
    in_cpp, exchange = _node_for(x, request)
    if exchange is not NotImplemented and (found := in_cpp.batch_norm(x, request, exchange)) is not None:
        return found[0], Exchanged(found[1], found[2])
    exchanged: list[Exchanged] = []
    y: Tensor = _Normalize.apply(dense(x), request.weight, request.bias, request, exchanged)  # type: ignore[no-untyped-call]
    return y, exchanged[0]


def _node_for(x: Tensor, request: Request) -> tuple[Any, Any]:
    """The node in C++, which costs a small tensor less, and its exchange; NotImplemented: only the node below can."""
    kernels = kernels_for(x) if request.known is None else None
    if kernels is compiled and (in_cpp := extension.node()) is not None:
        return in_cpp, exchange_in_memory(request.group, request.layer, x.shape[1])
    if kernels is cuda and (in_cpp := triton_launches.node(x.device)) is not None:
        return in_cpp, exchange_by_group(request.group, x.device)
    return None, NotImplemented


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, request, answer):  # type: ignore[no-untyped-def]
        kernels = kernels_for(x)
        if request.known is None:
            local = kernels.measure(x)
            rows_WF = peek_rows(local, request.group, request.layer, "forward")
            y, merged = kernels.finish_forward(x, rows_WF, request)
            answer.append(Exchanged(local, merged))
        else:
            y, _ = kernels.finish_forward(x, request.known.merged.unsqueeze(0), request)
            answer.append(request.known)
        ctx.save_for_backward(x, weight, bias)
        ctx.request, ctx.exchanged = request, answer[0]
        return y

    @staticmethod
    def backward(ctx, dy):  # type: ignore[no-untyped-def]
        x, weight, bias = ctx.saved_tensors
        needed = ctx.needs_input_grad
        request = ctx.request
        kernels = kernels_for(x)
        if torch.is_grad_enabled() or kernels is None or not has_plain_type(dy) or is_batched(dy):
            return _composed_gradients(  # type: ignore[no-untyped-call]
                x, dy, needed, request._replace(weight=weight, bias=bias, known=ctx.exchanged, running=None)
            )
        dy = like(dy, x)
        local = kernels.gradient_sums(x, dy, ctx.exchanged.merged)
        rows_WF = peek_rows(local, request.group, request.layer, "backward") if needed[0] else local.unsqueeze(0)
        dx, by_weight, by_bias = kernels.finish_backward(
            x, dy, ctx.exchanged.merged, local, rows_WF, request.eps, weight
        )
        by_weight = by_weight.to(weight.dtype) if needed[1] else None
        by_bias = by_bias.to(bias.dtype) if needed[2] else None
        return dx, by_weight, by_bias, None, None


def _composed_gradients(x, dy, needed, request):  # type: ignore[no-untyped-def]
    """The gradients of the reference composition: differentiable with create_graph, and dy may come from vmap."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        y, _ = reference.batch_norm(x, request)
    inputs = (x, request.weight, request.bias)
    wanted = [tensor for tensor, is_needed in zip(inputs, needed, strict=False) if is_needed]
    found = iter(torch.autograd.grad(y, wanted, dy, create_graph=create_graph))
    return *[next(found) if is_needed else None for is_needed in needed[:3]], None, None


def gradients_of_node(inputs, dy, needed, eps, group, layer, local, merged):  # type: ignore[no-untyped-def]
    """`_composed_gradients`, as the node in C++ asks for them. layer: None, or a weak reference."""
    x, weight, bias = inputs
    known = Exchanged(local, merged)
    request = Request(weight, bias, eps, group, layer and layer(), known, None)
    return _composed_gradients(x, dy, needed, request)[:3]  # type: ignore[no-untyped-call]


def rows_of_node(row, group, layer, direction):  # type: ignore[no-untyped-def]
    """`peek_rows`, as the node in C++ asks for it while exchanges are timed. layer: None, or a weak reference."""
    return peek_rows(row, group, layer and layer(), direction)
