"""Checks of input shapes that every layer shares."""

from __future__ import annotations

from torch import Tensor, nn


def check_channels(layer: nn.Module, x: Tensor, num_features: int) -> None:
    """Raises: ValueError unless x is (N, num_features, *)."""
    if x.dim() < 2 or x.shape[1] != num_features:
        raise ValueError(
            f"{type(layer).__name__} needs an input of shape (N, {num_features}, *), got {tuple(x.shape)}. "
            "Set num_features to the channels of the layer before."
        )
