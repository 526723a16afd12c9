"""How a batch is spread over workers in the tests, and how far two tensors are apart."""

from __future__ import annotations

import torch
from torch import Tensor

# Samples of each worker: alone, even, uneven, with empty workers.
SPLITS = [(7,), (4, 4), (3, 5), (8, 0), (0, 3, 4), (1, 1, 6), (2, 2, 2, 2), (5, 0, 2, 1), (0, 0, 0, 8)]


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest expected magnitude."""
    assert actual.shape == expected.shape
    if expected.numel() == 0:
        return 0.0
    return float((actual.double() - expected.double()).abs().max() / expected.double().abs().max().clamp_min(1e-300))


def part(batch: Tensor, split: tuple[int, ...], rank: int) -> Tensor:
    """The samples of one worker."""
    return torch.split(batch, split)[rank]
