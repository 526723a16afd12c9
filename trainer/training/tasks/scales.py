"""Deep supervision: the loss of a network that gives its scores at several resolutions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def score_scales(output: Any, num_classes: int, dims: int) -> list[Tensor] | None:
    """The scores of a training output by resolution, the finest first; None where it is anything else.

    A list or tuple of (N, K, *spatial) that get no larger, as of nnU-Net's networks, or one tensor (N, scales, K,
    *spatial), as of MONAI's DynUNet.
    """
    if isinstance(output, Tensor):
        is_stack = output.ndim == dims + 3 and output.shape[2] == num_classes
        return list(output.unbind(1)) if is_stack else None
    if not isinstance(output, list | tuple) or not output:
        return None
    if not all(isinstance(one, Tensor) and one.ndim == dims + 2 and one.shape[1] == num_classes for one in output):
        return None
    sizes = [one.shape[2:].numel() for one in output]
    return list(output) if sizes == sorted(sizes, reverse=True) else None


def over_scales(scales: list[Tensor], target: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The mean of their losses with weights 1, 1/2, 1/4, …, each held against the target in its resolution.

    See: Isensee et al. 2021, doi:10.1038/s41592-020-01008-z. Its code leaves out the coarsest scale; here all count, so
    that each head of the network has a gradient.
    """
    weights = [0.5**index for index in range(len(scales))]
    losses = [weight * loss(one, coarser(target, one)) for weight, one in zip(weights, scales, strict=True)]
    return torch.stack(losses).sum() / sum(weights)


def coarser(target: Tensor, output: Tensor) -> Tensor:
    """A mask in the resolution of `output`: the value at the centre of each of its positions."""
    for axis, size in enumerate(output.shape[2:], start=1):
        if (length := target.shape[axis]) != size:
            at = ((torch.arange(size, device=target.device) + 0.5) * (length / size)).long()
            target = target.index_select(axis, at.clamp_(max=length - 1))
    return target
