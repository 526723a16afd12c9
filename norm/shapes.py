"""Checks that every layer shares."""

from __future__ import annotations

from torch import Tensor

from syncnorm.norm.torch_compat import BatchNormBase


def check_channels(layer: BatchNormBase, x: Tensor) -> None:
    """Raises: ValueError unless x is (N, C, *), with the C channels that the tensors of `layer` have.

    They count and not `num_features`, which tools that prune channels leave as it was.
    """
    own = layer.running_mean if layer.running_mean is not None else layer.weight
    num_channels = layer.num_features if own is None else own.numel()
    if x.dim() < 2 or x.shape[1] != num_channels:
        raise ValueError(
            f"{type(layer).__name__} needs an input of shape (N, {num_channels}, *), got {tuple(x.shape)}. "
            "Set num_features to the channels of the layer before."
        )


def check_running_statistics(layer: BatchNormBase) -> None:
    """Raises: ValueError where one of the two is missing, or the cumulative average has nothing to divide by."""
    if (layer.running_mean is None) != (layer.running_var is None):
        raise ValueError(
            f"running_mean and running_var must either both be None or neither be None, but one of "
            f"{type(layer).__name__} is. Set the other, too."
        )
    if layer.momentum is None and layer.num_batches_tracked is None:
        raise ValueError(
            f"momentum=None of {type(layer).__name__} is the average of all batches and needs num_batches_tracked, "
            "which is None. Set a momentum, or give the layer a counter."
        )
