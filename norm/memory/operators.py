"""The operators whose outputs can be had again with the same bits, and how."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Compute = Callable[[Tensor], Tensor]

# An activation as a function of its own, and the one in place.
_PAIRS: dict[Any, tuple[Any, Any]] = {
    func: pair
    for pair in ((torch.relu, torch.relu_), (torch.sigmoid, torch.sigmoid_), (torch.tanh, torch.tanh_))
    for func in pair
} | {
    Tensor.relu: (torch.relu, torch.relu_),
    Tensor.relu_: (torch.relu, torch.relu_),
    Tensor.sigmoid: (torch.sigmoid, torch.sigmoid_),
    Tensor.sigmoid_: (torch.sigmoid, torch.sigmoid_),
    Tensor.tanh: (torch.tanh, torch.tanh_),
    Tensor.tanh_: (torch.tanh, torch.tanh_),
}
_WITH_SWITCH = (
    F.relu, F.relu6, F.leaky_relu, F.silu, F.mish, F.elu, F.celu, F.selu, F.hardtanh, F.hardswish, F.hardsigmoid,
)  # fmt: skip
_SWITCHES = {func: list(inspect.signature(func).parameters).index("inplace") - 1 for func in _WITH_SWITCH}
_COPY_IN_PLACE = (F.silu, F.mish, F.hardswish)
_NEVER_IN_PLACE = (F.gelu, F.softplus, F.softsign, F.logsigmoid, F.sigmoid, F.tanh, F.prelu, torch.prelu)
ACTIVATIONS: tuple[Any, ...] = (*_PAIRS, *_WITH_SWITCH, *_NEVER_IN_PLACE)


def variants(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Compute, Compute | None]:
    """The activation as a function of its input that leaves it alone, and one that overwrites it, if there is one.

    args, kwargs: what `func` was called with besides its input.
    """
    if func in _PAIRS:
        return _PAIRS[func]
    if func not in _SWITCHES:
        return (lambda x: func(x, *args, **kwargs)), None
    args = args[: _SWITCHES[func]]  # the switch comes last
    kwargs = {name: value for name, value in kwargs.items() if name != "inplace"}
    return partial(_switched, func, False, args, kwargs), partial(_switched, func, True, args, kwargs)


def copies_input(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether it overwrites its input and saves a copy of it for backward."""
    return func in _COPY_IN_PLACE and (kwargs.get("inplace", False) or any(args[_SWITCHES[func] :]))


def _switched(func: Any, inplace: bool, args: tuple[Any, ...], kwargs: dict[str, Any], x: Tensor) -> Tensor:
    y: Tensor = func(x, *args, inplace=inplace, **kwargs)
    return y


def batch_norm_of(arguments: tuple[Any, ...], x: Tensor) -> Tensor:
    """F.batch_norm by the arguments behind its input."""
    return F.batch_norm(x, *arguments)


def has_known_bits(x: Tensor, weight: Tensor | None) -> bool:
    """Whether `batch_norm_of_known_statistics` has the bits of training: on the CPU, where no scale is a half."""
    return (
        x.device.type == "cpu"
        and x.dim() > 1
        and x.numel() > x.shape[1]
        and (weight is None or weight.dtype in (torch.float32, torch.float64))
    )


def batch_norm_of_known_statistics(
    mean: Tensor, invstd: Tensor, weight: Tensor | None, bias: Tensor | None, x: Tensor
) -> Tensor:
    """Batch normalization in training without measuring again, which takes ten times as long as the rest on the CPU.

    The operator multiplies by invstd * weight in either mode, so the bits are those of training.
    """
    scale = invstd if weight is None else invstd * weight
    return F.batch_norm(x, mean, torch.ones_like(invstd), scale, bias, False, 0.0, 0.0)
