"""Normalization of weights instead of activations: weight normalization and weight standardization."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from syncnorm.norm.modules import copy_without_hooks
from syncnorm.norm.statistics.moments import per_channel, synced_moments
from syncnorm.norm.torch_compat import WeightNormParametrization

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
LINEAR_LAYERS = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)


class WeightStandardization(nn.Module):
    """Parametrization: the weight of each output channel, standardized.

    W' = (W - mean) / sqrt(var + eps), with mean and biased var over the fan-in of each output channel. Made for
    convolutions with a normalization behind, which undoes the loss of scale.

    Shape: (C_out, C_in / groups, *) -> the same. eps 1e-5, inside the root, as in the paper; the authors' code divides
    by (Bessel-corrected std + 1e-5) instead.
    See: Qiao et al. 2019, arXiv:1903.10520.

    >>> weight = norm.WeightStandardization()(torch.randn(4, 3, 3, 3))
    >>> torch.testing.assert_close(weight.mean((1, 2, 3)), torch.zeros(4), atol=1e-6, rtol=0)
    """

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, weight: Tensor) -> Tensor:
        fan_in = list(range(1, weight.dim()))
        var, mean = torch.var_mean(weight, fan_in, correction=0, keepdim=True)
        return (weight - mean) * torch.rsqrt(var + self.eps)


def weight_normalized(layer: nn.Module, *, with_bias: bool) -> nn.Module:
    """A copy of `layer` (convolution or linear) with W = g * v / |v|, one length g per output channel; same function.

    The gradient of v is orthogonal to v, that of g is that of the length alone. torch.nn.utils.parametrizations'
    weight_norm does it: g and v are `parametrizations.weight.original0` and `original1`.
    with_bias: give the copy a bias (0) where `layer` has none.
    Raises: ValueError for a weight that is computed, and for one with an output channel of zeros: v has no direction.
    See: Salimans & Kingma 2016, arXiv:1602.07868, sec. 2.
    """
    _check_plain(layer)
    new = copied(layer, with_bias=with_bias)
    dim = 1 if isinstance(new, TRANSPOSED) else 0
    _check_directions(new, dim)
    parametrizations.weight_norm(new, "weight", dim=dim)
    return new


def weight_standardized(layer: nn.Module) -> nn.Module:
    """A copy of `layer` (a convolution) whose weight is standardized. See `WeightStandardization`."""
    _check_plain(layer)
    new = copied(layer, with_bias=False)
    return parametrize.register_parametrization(new, "weight", WeightStandardization())


def _check_plain(layer: nn.Module) -> None:
    if parametrize.is_parametrized(layer):
        raise ValueError(
            f"A weight can be reparametrized once: a {_class_name(layer)} has parametrizations already. Remove them "
            "first, or leave its path to another kind by an override."
        )


def _class_name(layer: nn.Module) -> str:
    return parametrize.type_before_parametrizations(layer).__name__


def _check_directions(layer: nn.Module, dim: int) -> None:
    weight = layer.get_parameter("weight").detach()
    zeros = 0 if weight.is_meta else int((weight.transpose(0, dim).flatten(1) == 0).all(1).sum())
    if zeros:
        raise ValueError(
            f"Every output channel needs a weight other than 0 to be weight normalized: {zeros} of {weight.shape[dim]} "
            f"of {layer} are zeros. Draw their weights first, or leave its path to another kind by an override."
        )


def is_weight_normalized(layer: nn.Module) -> bool:
    """Whether `layer` has torch's weight_norm on its weight."""
    if not parametrize.is_parametrized(layer, "weight"):
        return False
    chain: Any = layer.parametrizations
    return isinstance(chain.weight[0], WeightNormParametrization)


def can_normalize_weight(layer: nn.Module) -> bool:
    """A convolution or linear layer; of grouped transposed ones the weight has no axis of output channels."""
    is_grouped = isinstance(layer, TRANSPOSED) and layer.groups > 1
    return isinstance(layer, LINEAR_LAYERS) and not is_grouped


def copied(layer: nn.Module, *, with_bias: bool) -> nn.Module:
    """A copy of `layer` with parameters of its own, and a bias of zeros if it had none and is to have one.

    Raises: ValueError if its weight is no parameter, but computed by a hook or a parametrization.
    """
    if not isinstance(layer._parameters.get("weight"), nn.Parameter):
        hooks = [type(hook).__name__ for hook in layer._forward_pre_hooks.values() if hasattr(hook, "name")]
        raise ValueError(
            f"The weight of a layer must be a parameter, but that of a {_class_name(layer)} is computed"
            f"{f' by {hooks[0]}' if hooks else ''}. Take that off first, as torch.nn.utils.remove_weight_norm, "
            "remove_spectral_norm or prune.remove do."
        )
    new = copy_without_hooks(layer)
    if with_bias and new.bias is None:
        weight = new.get_parameter("weight")
        new.bias = nn.Parameter(weight.new_zeros(out_channels(new)))
    return new


def out_channels(layer: nn.Module) -> int:
    size = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    assert isinstance(size, int)
    return size


def initialize_weight_norm(
    model: nn.Module, batch: Tensor, *, process_group: dist.ProcessGroup | None = None
) -> list[str]:
    """Set length and bias of every weight-normalized layer so that its outputs on `batch` have mean 0 and variance 1.

    With t = v * x / |v|: g = 1 / std[t], bias = -mean[t] / std[t] (without a bias: g alone), layer after layer in one
    forward, each on the initialised output of those before. mean and std (biased) cover the batches of all workers of
    `process_group` (None: all), so every worker starts alike.

    Returns: the paths of the layers that were set.
    Raises: ValueError if the model has none, or if an output channel is constant on the batch.
    See: Salimans & Kingma 2016, arXiv:1602.07868, sec. 3.

    >>> model, _ = norm.convert(nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2)), "weight")
    >>> batch = torch.randn(64, 4)
    >>> norm.initialize_weight_norm(model, batch)
    ['0']
    >>> torch.testing.assert_close(model(batch).var(0, correction=0), torch.ones(2))
    """
    layers = {path: module for path, module in model.named_modules() if is_weight_normalized(module)}
    if not layers:
        raise ValueError('The model has no weight-normalized layer. Convert it first: norm.convert(model, "weight").')
    with _hooked(layers, process_group), torch.no_grad():
        model(batch)
    return list(layers)


@contextmanager
def _hooked(layers: dict[str, nn.Module], group: dist.ProcessGroup | None) -> Iterator[None]:
    def hook(path: str, layer: nn.Module, _: object, y: Tensor) -> Tensor:
        return _set_length(path, group, layer, y)

    handles = [layer.register_forward_hook(partial(hook, path)) for path, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _set_length(path: str, group: dist.ProcessGroup | None, layer: nn.Module, y: Tensor) -> Tensor:
    """Set g and bias from the output `y` there was; the output there is now."""
    chain: Any = layer.parametrizations
    length: Tensor = chain.weight.original0
    bias = layer.bias if isinstance(layer.bias, Tensor) else None
    y_NCL = y.movedim(-1, 1) if isinstance(layer, nn.Linear) else y
    moments = synced_moments(y_NCL, group)
    std = moments.biased_variance.sqrt()
    if not bool((std > 0).all()):
        raise ValueError(
            f"Every output channel must vary over the batch: {int((std == 0).sum())} of {std.numel()} channels of "
            f"{path or 'the model'} are constant. Use a larger batch of real data."
        )
    # With y = g * t + b: mean[t] = (mean[y] - b) / g and std[t] = std[y] / |g|, so the new g is |g| / std[y].
    old_length, old_bias = length.flatten().double(), 0.0 if bias is None else bias.double()
    new_length = old_length.abs() / std
    new_bias = torch.zeros_like(std) if bias is None else (old_bias - moments.mean) / old_length * new_length
    scale = new_length / old_length
    out = y_NCL * per_channel(scale, y_NCL) + per_channel(new_bias - old_bias * scale, y_NCL)
    length.copy_(new_length.view_as(length))
    if bias is not None:
        bias.copy_(new_bias)
    out = out.to(y.dtype)
    return out.movedim(1, -1) if isinstance(layer, nn.Linear) else out
