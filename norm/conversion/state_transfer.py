"""Carries over from a layer to its successor what means the same in both: tensors, device, dtype."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from syncnorm.norm.kind import KINDS
from syncnorm.norm.layers.evo_norm import EvoNormS0
from syncnorm.norm.layers.frozen_batch_norm import FrozenBatchNorm
from syncnorm.norm.layers.sync_batch_norm import SyncBatchNorm
from syncnorm.norm.layers.weight import LINEAR_LAYERS, WeightStandardization, is_weight_normalized
from syncnorm.norm.reading.norm_act import norm_class
from syncnorm.norm.reading.readers import Source, formula, num_groups

_AFFINE = ("weight", "bias")
_CAN_FIX_STATISTICS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, SyncBatchNorm)
_RUNNING = ("running_mean", "running_var", "num_batches_tracked")
_WITHOUT_STATISTICS = (
    "it had no running statistics, so in eval mode it now normalizes by those that it collects from here on"
)
_WITHOUT_MEAN = "it had no running mean, which now starts at 0"


def carry_tensors(source: nn.Module, target: nn.Module) -> None:
    """Share weight, bias and running statistics with `target`, where both have them.

    Only parameters and buffers of the same name, shape and meaning: scale and shift of a normalized channel, moving
    averages of batch statistics. A parameter stays the same object.
    """
    same = formula(source) is formula(target)  # then learned exponents and thresholds mean the same, too
    for name in dict.fromkeys((*_AFFINE, *_RUNNING, *(target._parameters if same else ()))):
        if parametrize.is_parametrized(source, name) and target._parameters.get(name) is not None:
            parametrize.transfer_parametrizations_and_params(source, target, name)
            continue
        tensor = getattr(source, name, None)
        if isinstance(tensor, Tensor):
            _share(tensor, target, name)
    if _has_fixed_statistics(source) and norm_class(target) in _CAN_FIX_STATISTICS:
        target.track_running_stats = False  # type: ignore[assignment]


def carry_back(converted: nn.Module, original: nn.Module, typical: Tensor | None) -> None:
    """Give `original` what `converted` learned in its place, where it means the same there.

    Normalization layers: as in `carry_tensors`. Reparametrized weights: the weight they stand for (weight
    normalization) or standardize. Weights that were initialised anew are not: the original ones come back.
    """
    place_like(original, converted, typical)
    if is_weight_normalized(converted):
        assert isinstance(converted.weight, Tensor)
        _copy_if_changed(converted.weight, original.weight)
    elif parametrize.is_parametrized(converted, "weight") and _standardization(converted):
        _copy_if_changed(converted.parametrizations.weight.original, original.weight)  # type: ignore[union-attr]
    elif not isinstance(converted, LINEAR_LAYERS):
        carry_tensors(converted, original)
        return
    else:
        return
    if original.bias is not None:
        _copy_if_changed(converted.bias, original.bias)


def changes_in_eval(source: Source, old: nn.Module, new: nn.Module) -> Iterator[str]:
    """What differs in eval mode, or in what training does to it, although the names of the two kinds don't say so."""
    had, has = (isinstance(getattr(layer, "running_mean", None), Tensor) for layer in (old, new))
    if KINDS[source.kind].batch_statistics and has and not had:
        had_none = (
            "it had no running statistics, so in eval mode it now normalizes by those that it collects from here on"
        )
        yield "it had no running mean, which now starts at 0" if source.track_running_stats else had_none
    if has and _has_fixed_statistics(old) and norm_class(new) not in (*_CAN_FIX_STATISTICS, FrozenBatchNorm):
        yield "its running statistics were fixed (track_running_stats=False), and follow the data from here on"
    if source.kind == "instance" and had and not has:
        yield "it normalized by running statistics in eval mode, and now by those of each sample"
    before, after = num_groups(old), num_groups(new)
    is_same_kind = isinstance(new, {"group": nn.GroupNorm, "evo_s0": EvoNormS0}.get(source.kind, ()))
    if is_same_kind and before != after:
        yield f"its {before} groups of channels are {after} now"
    if source.is_activation and formula(new) is not formula(old):
        yield f"its own activation becomes a {type(source.tail[-1]).__name__}"


def place_like(module: nn.Module, example: nn.Module, fallback: Tensor | None) -> None:
    """Move `module` to the device and the floating dtype of `example`, or of `fallback` where that has no tensors.

    fallback: a parameter of the model, see `typical_parameter`.
    """
    tensors = (tensor for tensor in (*example.parameters(), *example.buffers()) if tensor.is_floating_point())
    if (tensor := next(tensors, fallback)) is not None:
        is_computed_in = tensor.is_floating_point() and tensor.dtype.itemsize > 1  # 8 bits only hold a weight
        module.to(device=tensor.device, dtype=tensor.dtype if is_computed_in else None)


def typical_parameter(model: nn.Module) -> Tensor | None:
    """One whose device and dtype a layer without tensors of its own is taken to have."""
    parameters = list(model.parameters())
    return next((tensor for tensor in parameters if tensor.is_floating_point()), next(iter(parameters), None))


def _has_fixed_statistics(layer: nn.Module) -> bool:
    """Whether it has running statistics, but was told not to update them."""
    has_statistics = isinstance(getattr(layer, "running_mean", None), Tensor)
    return has_statistics and getattr(layer, "track_running_stats", True) is False


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
    largest = before.abs().nan_to_num(0.0, posinf=0.0).max()  # training may have diverged
    if not torch.allclose(now, before, rtol=rounding, atol=rounding * float(largest), equal_nan=True):
        before.copy_(now)
