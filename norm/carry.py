"""Take along from one layer to its successor what means the same there: tensors, hooks, device, dtype."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils import parametrize

_AFFINE = ("weight", "bias")
_RUNNING = ("running_mean", "running_var", "num_batches_tracked")

# How torch names the hooks of a module. The dictionaries themselves go along: a handle removes its hook from there.
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)


def carry_tensors(source: nn.Module, target: nn.Module) -> None:
    """Share weight, bias and running statistics with `target`, where both have them.

    Only parameters and buffers of the same name, shape and meaning: scale and shift of a normalized channel, moving
    averages of batch statistics. A parameter stays the same object.
    """
    for name in (*_AFFINE, *_RUNNING):
        if parametrize.is_parametrized(source, name) and target._parameters.get(name) is not None:
            parametrize.transfer_parametrizations_and_params(source, target, name)
            continue
        tensor = getattr(source, name, None)
        if isinstance(tensor, Tensor):
            _share(tensor, target, name)


def carry_hooks(source: nn.Module, target: nn.Module) -> None:
    """Give `target` the hooks of `source`; handles to them stay valid."""
    for name in _HOOKS:
        if name in source.__dict__:
            object.__setattr__(target, name, source.__dict__[name])


def place_like(module: nn.Module, example: nn.Module, fallback: Tensor | None) -> None:
    """Move `module` to the device and the floating dtype of `example`, or at least to the device of `fallback`."""
    tensors = (tensor for tensor in (*example.parameters(), *example.buffers()) if tensor.is_floating_point())
    if (tensor := next(tensors, None)) is not None:
        module.to(device=tensor.device, dtype=tensor.dtype)
    elif fallback is not None:
        module.to(device=fallback.device)


def _share(tensor: Tensor, target: nn.Module, name: str) -> None:
    parameter = target._parameters.get(name)
    if parameter is not None and parameter.shape == tensor.shape:
        if isinstance(tensor, nn.Parameter):
            target._parameters[name] = tensor
        else:  # weight and bias of frozen layers are buffers
            parameter.data = tensor.detach()
    buffer = target._buffers.get(name)
    if buffer is not None and buffer.shape == tensor.shape:
        target._buffers[name] = tensor.detach()
