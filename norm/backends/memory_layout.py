"""The two dense layouts that the kernels accept, and conversion of tensors into them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Layout(NamedTuple):
    """How x (N, C, *) lies in memory: as planes (N, C, L) or, channels last, as rows (N*L, C)."""

    N: int
    C: int
    L: int
    by_rows: bool


_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def dense(x: Tensor) -> Tensor:
    """x itself where it is dense in one of the layouts, else a contiguous copy."""
    x = x.resolve_neg()
    if x.is_contiguous() or (x.dim() in _CHANNELS_LAST and x.is_contiguous(memory_format=_CHANNELS_LAST[x.dim()])):
        return x
    return x.contiguous()


def is_by_rows(x: Tensor) -> bool:
    """Whether x is dense as rows and not as planes too: channels_last, with several channels and positions."""
    kept = _CHANNELS_LAST.get(x.dim())
    return kept is not None and not x.is_contiguous() and x.is_contiguous(memory_format=kept)


def layout_of(x: Tensor) -> Layout:
    """The layout of a dense x."""
    N, C = x.shape[:2]
    L = x.numel() // (N * C) if N * C else 0
    return Layout(N, C, L, L == 1 or not x.is_contiguous())


def like(x: Tensor, other: Tensor) -> Tensor:
    """x in the memory format and dtype of a dense `other`."""
    kept = torch.contiguous_format if other.is_contiguous() else _CHANNELS_LAST[other.dim()]
    x = x.resolve_neg().contiguous(memory_format=kept)
    return x if x.dtype == other.dtype else x.to(other.dtype)
