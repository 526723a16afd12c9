"""Group normalization that is as fast on channels_last tensors as on contiguous ones."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from syncnorm.norm.backends.arguments import has_plain_type
from syncnorm.norm.backends.by_sample import cpu_rows, triton_rows
from syncnorm.norm.backends.dispatch import may_use_kernels
from syncnorm.norm.backends.memory_layout import is_by_rows, like
from syncnorm.norm.native.extension import node
from syncnorm.norm.torch_compat import is_batched, is_traced

_KERNELS: dict[str, Any] = {"cpu": cpu_rows, "cuda": triton_rows}


def group_norm(x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """F.group_norm; for a channels_last x by kernels that read it row by row, where they take these tensors.

    Output and gradients have the memory format of x. A mode that overrides torch's functions can override this one.
    """
    if torch.compiler.is_compiling() or not has_plain_type(x):  # also what torch.fx puts in the place of a tensor
        return F.group_norm(x, num_groups, weight, bias, eps)
    if has_torch_function((x, weight, bias)):
        tensors = [tensor for tensor in (x, weight, bias) if tensor is not None]
        y: Tensor = handle_torch_function(group_norm, tensors, x, num_groups, weight, bias, eps)
        return y
    if not may_use_kernels() or is_traced():
        return F.group_norm(x, num_groups, weight, bias, eps)
    if x.is_cpu and (in_cpp := node()) is not None:  # costs a small tensor less
        by_node: Tensor | None = in_cpp.group_norm(x, num_groups, weight, bias, eps)
        if by_node is not None:
            return by_node
    if x.is_cuda and x.dtype != torch.float64 and torch.is_autocast_enabled("cuda"):
        x = x.float()  # as autocast has F.group_norm do
    if not _fits(x, num_groups, weight, bias):
        return F.group_norm(x, num_groups, weight, bias, eps)
    return _GroupNorm.apply(x, weight, bias, num_groups, eps)  # type: ignore[no-any-return, no-untyped-call]


def _fits(x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None) -> bool:
    """Whether a kernel takes these tensors. What it does not take, torch does or refuses."""
    kernels = _KERNELS.get(x.device.type)
    if kernels is None or x.layout is not torch.strided:
        return False
    if x.is_neg() or not is_by_rows(x) or x.shape[1] % num_groups or not kernels.takes(x):
        return False
    affine = [tensor for tensor in (weight, bias) if tensor is not None]
    return all(_is_affine_of(x, tensor) for tensor in affine) and len({tensor.dtype for tensor in affine}) < 2


def _is_affine_of(x: Tensor, tensor: Tensor) -> bool:
    is_wider = tensor.dtype == torch.float32 and x.dtype == torch.bfloat16
    has_its_dtype = tensor.dtype == x.dtype or is_wider
    return has_plain_type(tensor) and has_its_dtype and tensor.device == x.device and tensor.shape == x.shape[1:2]


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, num_groups, eps):  # type: ignore[no-untyped-def]
        y, statistics = _KERNELS[x.device.type].forward(x, num_groups, weight, bias, eps)
        ctx.save_for_backward(x, weight, bias, statistics)
        ctx.num_groups, ctx.eps = num_groups, eps
        return y

    @staticmethod
    def backward(ctx, dy):  # type: ignore[no-untyped-def]
        x, weight, bias, statistics = ctx.saved_tensors
        needed = ctx.needs_input_grad[:3]
        # A hook on saved tensors may give x back in another memory format.
        is_ours = not torch.is_grad_enabled() and has_plain_type(dy) and not is_batched(dy) and is_by_rows(x)
        if not is_ours:
            found = torch_gradients((x, weight, bias), dy, needed, ctx.num_groups, ctx.eps)  # type: ignore[no-untyped-call]
            return *found, None, None
        dx, by_weight, by_bias = _KERNELS[x.device.type].backward(x, like(dy, x), statistics, weight)
        by_weight = by_weight.to(weight.dtype) if needed[1] else None
        by_bias = by_bias.to(bias.dtype) if needed[2] else None
        return dx if needed[0] else None, by_weight, by_bias, None, None


def torch_gradients(inputs, dy, needed, num_groups, eps):  # type: ignore[no-untyped-def]
    """Those of F.group_norm: differentiable with create_graph, and dy may come from vmap. Called from C++, too."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        y = F.group_norm(inputs[0], num_groups, inputs[1], inputs[2], eps)
    wanted = [tensor for tensor, is_needed in zip(inputs, needed, strict=True) if is_needed]
    found = iter(torch.autograd.grad(y, wanted, dy, create_graph=create_graph))
    return [next(found) if is_needed else None for is_needed in needed]
