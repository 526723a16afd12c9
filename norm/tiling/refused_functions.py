"""Functions of torch whose answer at a position depends on how large the picture is."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import torch.nn.functional as F
from torch import Tensor


def require_local(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], name: str, axes: Sequence[int]) -> None:
    """Raises: ValueError for adaptive pooling and for some interpolations, naming the module. axes: spatial dimensions
    along which there are several tiles."""
    label = getattr(function, "__name__", "")
    if label.startswith("adaptive_"):
        raise ValueError(
            f"norm.tiled can't run {name}: {label} pools the whole picture, of which a tile sees a part. Leave this "
            "module out, or run the whole picture."
        )
    if function is F.interpolate or function is F.upsample:
        _require_local_interpolation(args, kwargs, name, axes)


def _require_local_interpolation(args: tuple[Any, ...], kwargs: dict[str, Any], name: str, axes: Sequence[int]) -> None:
    given = inspect.signature(F.interpolate).bind(*args, **kwargs).arguments
    if given.get("align_corners"):
        raise ValueError(
            f"norm.tiled can't run {name}: with align_corners=True an interpolation depends on the size of the whole "
            "picture. Train with align_corners=False, or run the whole picture."
        )
    factors = _factors(given["input"], given.get("size"), given.get("scale_factor"))
    for factor in (factors[axis] for axis in axes):
        if 1 not in (factor.numerator, factor.denominator):
            raise ValueError(
                f"norm.tiled can't run {name}: it interpolates by a factor of {float(factor):.4g}, so that positions "
                "of tiles don't fit those of the picture. Give a picture whose sides are multiples of the network's "
                "total stride."
            )


def _factors(x: Tensor, size: Any, scale: Any) -> list[Fraction]:
    dims = x.dim() - 2
    if size is None:
        scales = [scale] * dims if isinstance(scale, int | float) else list(scale or ())
        return [Fraction(one).limit_denominator(10**6) for one in scales]
    sides = [size] * dims if isinstance(size, int) else list(size)
    return [Fraction(int(after), before) for after, before in zip(sides, x.shape[2:], strict=True)]
