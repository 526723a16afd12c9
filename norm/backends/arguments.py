"""Checks of the tensors that come with a call. Kernels read and write by address, so they take nothing on trust."""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor, nn

from syncnorm.norm.backends.interface import Request


def check_request(x: Tensor, request: Request) -> None:
    """Raises: RuntimeError, as torch does, unless every tensor of `request` fits x (N, C, *)."""
    check_per_channel(x, weight=request.weight, bias=request.bias)
    if request.running is not None:
        check_per_channel(x, running_mean=request.running.mean, running_var=request.running.var)


def check_per_channel(x: Tensor, **tensors: Tensor | None) -> None:
    """Raises: RuntimeError unless each of `tensors` has one number a channel of x, on its device."""
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.numel() != x.shape[1]:
            raise RuntimeError(
                f"{name} should contain {x.shape[1]} elements not {tensor.numel()}: one for each channel of the input "
                f"{tuple(x.shape)}. Give the layer a {name} of that size."
            )
        if tensor.device != x.device:
            raise RuntimeError(
                f"{name} must be on the device of the input, {x.device}, but it is on {tensor.device}. Move the layer "
                "there. One on meta has no values yet: load them with load_state_dict(…, assign=True)."
            )


def is_plain(tensor: Tensor | None, *dtypes: torch.dtype, size: int) -> TypeGuard[Tensor]:
    """Whether `tensor` lies in the memory of its device as `size` numbers of one of `dtypes`, one after the other."""
    return (
        has_plain_type(tensor)
        and tensor is not None
        and tensor.dtype in dtypes
        and tensor.numel() == size
        and tensor.is_contiguous()
        and not tensor.is_neg()
        and not tensor.is_inference()
    )


def has_plain_type(tensor: Tensor | None) -> bool:
    """Whether it is none or a tensor of torch's own, not one of a subclass that keeps its numbers elsewhere."""
    return tensor is None or type(tensor) is Tensor or type(tensor) is nn.Parameter
