"""Carries over from a layer to its successor what means the same in both: tensors, device, dtype."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from syncnorm.norm.layers.weight import LINEAR_LAYERS, WeightStandardization, is_weight_normalized

_AFFINE = ("weight", "bias")
_RUNNING = ("running_mean", "running_var", "num_batches_tracked")


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


def carry_back(converted: nn.Module, original: nn.Module, device_of: Tensor | None) -> None:
    """Give `original` what `converted` learned in its place, where it means the same there.

    Normalization layers: as in `carry_tensors`. Reparametrized weights: the weight they stand for (weight
    normalization) or standardize. Weights that were initialised anew are not: the original ones come back.
    """
    layer = converted[0] if isinstance(converted, nn.Sequential) else converted
    place_like(original, layer, device_of)
    if is_weight_normalized(layer):
        assert isinstance(layer.weight, Tensor)
        _copy_if_changed(layer.weight, original.weight)
    elif parametrize.is_parametrized(layer, "weight") and _standardization(layer):
        _copy_if_changed(layer.parametrizations.weight.original, original.weight)  # type: ignore[union-attr]
    elif not isinstance(layer, LINEAR_LAYERS):
        carry_tensors(layer, original)
        return
    else:
        return
    if original.bias is not None:
        _copy_if_changed(layer.bias, original.bias)


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


def _standardization(layer: nn.Module) -> bool:
    return any(isinstance(module, WeightStandardization) for module in layer.modules())


@torch.no_grad()
def _copy_if_changed(now: object, before: object) -> None:
    """Copy unless the two agree up to the rounding of a reparametrization: what was not trained stays bit for bit."""
    assert isinstance(now, Tensor)
    assert isinstance(before, Tensor)
    rounding = 8 * torch.finfo(before.dtype).eps
    if not torch.allclose(now, before, rtol=rounding, atol=rounding * float(before.abs().max())):
        before.copy_(now)
