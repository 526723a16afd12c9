"""Statistics of each sample by itself, as functions that a mode of torch may answer in their place: one that runs a
sample by tiles answers with those of the whole sample."""

from __future__ import annotations

import math

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary


def mean_square(x: Tensor) -> tuple[Tensor, int]:
    """The mean of x^2 over the positions of each (n, c), and the number of positions.

    Shape: (N, C, *) -> (N, C, 1, ...).
    """
    if has_torch_function_unary(x):
        answer: tuple[Tensor, int] = handle_torch_function(mean_square, (x,), x)
        return answer
    positions = list(range(2, x.dim()))
    return (x.square().mean(positions, keepdim=True) if positions else x.square()), math.prod(x.shape[2:])


def group_variance(x: Tensor, num_groups: int) -> Tensor:
    """The biased variance over the channels of each group and all positions. Shape: (N, C, *) -> (N, num_groups, 1)."""
    if has_torch_function_unary(x):
        answer: Tensor = handle_torch_function(group_variance, (x,), x, num_groups)
        return answer
    groups = x.reshape(x.shape[0], num_groups, math.prod(x.shape[1:]) // num_groups)
    return (groups - groups.mean(2, keepdim=True)).square().mean(2, keepdim=True)
