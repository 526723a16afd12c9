"""How far a network looks, and at which strides it computes, found by running it on inputs with a hole.

A position that is not a number makes all that depends on it not a number, whatever the weights are. So the first block
of a strip is set to NaN, and the extent of NaN in each map tells how far the network looks to the left; the last block
tells about the right. Normalizations by statistics of the sample are bypassed, and convolutions only say where NaN
goes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from syncnorm.norm.tiling.layout import Scales
from syncnorm.norm.tiling.nan_convolutions import spread
from syncnorm.norm.tiling.nested import leaves
from syncnorm.norm.tiling.refused_functions import require_local
from syncnorm.norm.tiling.sample_statistics import read_call


@dataclass(frozen=True, eq=False)
class Map:
    """A map of a network. weight: of the normalization that takes it."""

    name: str
    function: Any
    weight: Tensor | None
    scales: Scales


@dataclass(frozen=True)
class Geometry:
    """meetings: the maps that are normalized by statistics of the sample, in their order. reach: the positions that
    the network looks to either side, rounded up to a multiple of the total stride; an axis each."""

    meetings: tuple[Map, ...]
    outputs: tuple[Map, ...]
    strides: tuple[int, ...]
    reach: tuple[int, ...]


def measure(model: nn.Module, x: Tensor, tile: Sequence[int], device: torch.device) -> Geometry:
    """The geometry of `model` for tiles of x; where an axis has one tile only, stride 1 and reach 0.

    Raises: ValueError where it can't be run by tiles, naming the module.
    """
    sides = [min(length, side) for length, side in zip(x.shape[2:], tile, strict=True)]
    cut = [axis for axis, side in enumerate(sides) if side < x.shape[2 + axis]]
    like = torch.empty(0, x.shape[1], dtype=x.dtype, device=device)
    seen = _first_run(model, like.new_zeros(1, x.shape[1], *sides), cut)
    others, meetings, outputs = (
        [_scaled(one, sides, cut, tile) for one in maps] for maps in (seen.others, seen.meetings, seen.outputs)
    )
    strides = tuple(
        math.lcm(*[one.scales[axis].denominator for one in (*meetings, *outputs, *others)])
        for axis in range(len(sides))
    )
    found = Geometry(tuple(meetings), tuple(outputs), strides, (0,) * len(sides))
    reach, stride = [0] * len(sides), max(strides)
    shortest = max(2 * stride, -(-16 // stride) * stride)  # what padding by reflection takes
    for axis in cut:
        small = [min(own, shortest) if own % stride == 0 else own for own in sides]
        reach[axis] = _reach(model, like, small, axis, x.shape[2 + axis], found)
    return replace(found, reach=tuple(reach))


@dataclass(frozen=True)
class _RecordedMap:
    """A map of one run. is_nan: for each position; of a map on the way, whose size alone counts, False."""

    name: str
    function: Any
    weight: Tensor | None
    is_nan: Tensor


@dataclass
class _Run:
    meetings: list[_RecordedMap] = field(default_factory=list)
    outputs: list[_RecordedMap] = field(default_factory=list)
    others: list[_RecordedMap] = field(default_factory=list)
    without_numbers: str | None = None
    """The first function all of whose results are NaN, and its module."""


class _Recording(TorchFunctionMode):
    def __init__(self, names: list[str], dims: int, cut: Sequence[int]) -> None:
        super().__init__()
        self.found = _Run()
        self._names, self._dims, self._cut = names, dims, cut

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs, name = kwargs or {}, self._names[-1]
        require_local(func, args, kwargs, name, self._cut)
        call = read_call(func, args, kwargs)
        if call is not None:
            self._check(call.x, name)
            self.found.meetings.append(_RecordedMap(name, func, call.weight, _extent(call.x)))
            return call.bypass()
        result = spread(func, args, kwargs)
        if result is None:
            result = func(*args, **kwargs)
        if isinstance(result, Tensor) and result.is_floating_point() and result.dim() > 1:
            label = getattr(func, "__name__", "")
            if result.dim() == self._dims + 2 and ("conv" in label or "pool" in label or label == "interpolate"):
                size = torch.zeros(result.shape[2:], dtype=torch.bool)
                self.found.others.append(_RecordedMap(name, func, None, size))
            if self.found.without_numbers is None and _is_nan_everywhere(result):
                self.found.without_numbers = f"{name} ({label})"
        return result

    def _check(self, x: Tensor, name: str) -> None:
        if x.dim() != self._dims + 2:
            raise ValueError(
                f"norm.tiled follows normalizations of (N, C, *) with {self._dims} spatial dimensions, but {name} "
                f"normalizes a tensor of shape {tuple(x.shape)} by statistics of the sample. Run the whole picture."
            )


def _is_nan_everywhere(values: Tensor) -> bool:
    if not values.numel() or not values[0, 0].isnan().all():
        return False
    return bool(values.isnan().all())


def _extent(values: Tensor) -> Tensor:
    """Of (N, C, *): whether there is NaN at each position. Shape: (*)."""
    return values.detach().isnan().any(1).any(0)


def _run(model: nn.Module, x: Tensor, cut: Sequence[int]) -> _Run:
    names = ["the model"]
    recording = _Recording(names, x.dim() - 2, cut)
    found = recording.found
    with _named(model, names), torch.no_grad(), recording:
        output = model(x)
    for number, leaf in enumerate(leaves(output)):
        if leaf.dim() != x.dim() or not leaf.is_floating_point():
            raise ValueError(
                f"norm.tiled needs outputs (N, K, *) of floating-point numbers with {x.dim() - 2} spatial dimensions, "
                f"got {tuple(leaf.shape)} of {leaf.dtype}. What is computed from the whole picture can't be tiled."
            )
        found.outputs.append(_RecordedMap(f"output {number}", None, None, _extent(leaf)))
    return found


def _first_run(model: nn.Module, x: Tensor, cut: Sequence[int]) -> _Run:
    try:
        return _run(model, x, cut)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ValueError(
            f"norm.tiled needs a model that takes an input of the size of a tile, {tuple(x.shape[2:])}: {error}. Use "
            "a multiple of its total stride, such as 32; layers made for one size of picture can't be tiled."
        ) from error


@contextmanager
def _named(model: nn.Module, names: list[str]) -> Iterator[None]:
    """Within, the last of `names` is the innermost module that runs."""
    handles: list[RemovableHandle] = []
    for path, module in model.named_modules():
        name = f"{path} ({type(module).__name__})" if path else "the model"
        handles.append(module.register_forward_pre_hook(lambda _, __, name=name: names.append(name)))
        handles.append(module.register_forward_hook(lambda *_: names.pop() and None))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _scaled(one: _RecordedMap, sides: Sequence[int], cut: Sequence[int], tile: Sequence[int]) -> Map:
    """Raises: ValueError unless each cut axis of the map is a whole multiple or a whole part of the input's."""
    scales = [Fraction(length, side) for length, side in zip(one.is_nan.shape, sides, strict=True)]
    for axis in cut:
        if 1 not in (scales[axis].numerator, scales[axis].denominator):
            raise ValueError(
                f"tile must be a multiple of the network's total stride: a side of {tile[axis]} gives "
                f"{one.is_nan.shape[axis]} positions in {one.name}. Use a multiple of a power of 2, such as "
                f"{-(-tile[axis] // 32) * 32}; a network whose convolutions don't keep the size (padding=0) can't be "
                "tiled."
            )
    return Map(one.name, one.function, one.weight, tuple(s if a in cut else Fraction(1) for a, s in enumerate(scales)))


def _reach(model: nn.Module, like: Tensor, small: Sequence[int], axis: int, side: int, known: Geometry) -> int:
    """Strips become longer until they are longer than what the network sees."""
    stride, most = known.strides[axis], -(-side // known.strides[axis]) * known.strides[axis]
    length = max(4 * stride, 32 // stride * stride)
    while True:
        length = min(length, most)
        strip = [length if other == axis else own for other, own in enumerate(small)]
        sizes = [_one_sided(model, like, strip, axis, known, at_end=at_end) for at_end in (False, True)]
        reaches = [size for size in sizes if isinstance(size, int)]
        if len(reaches) == 2:
            return -(-max(reaches) // stride) * stride
        if length == most:
            culprit = next(size for size in sizes if isinstance(size, str))
            raise ValueError(
                f"norm.tiled needs a network that looks less far than the picture is long, but {culprit} sees all of "
                f"its {side} positions along dimension {2 + axis}. Global pooling, attention over the picture and "
                "circular padding can't be tiled; run the whole picture."
            )
        length *= 2


def _one_sided(
    model: nn.Module, like: Tensor, strip: Sequence[int], axis: int, known: Geometry, *, at_end: bool
) -> int | str:
    """How far the network looks away from one end; or the module that sees all of the strip."""
    stride, length = known.strides[axis], strip[axis]
    x = like.new_zeros(1, like.shape[1], *strip)
    x.narrow(2 + axis, length - stride if at_end else 0, stride).fill_(torch.nan)
    seen = _run(model, x, (axis,))
    if len(seen.meetings) != len(known.meetings):
        raise ValueError(
            f"norm.tiled needs a model that passes through the same normalization layers for every size, got "
            f"{len(known.meetings)} of them for a tile and {len(seen.meetings)} for {tuple(strip)}."
        )
    reach = 0
    maps = (*known.meetings, *known.outputs)
    for one, own in zip(maps, (*seen.meetings, *seen.outputs), strict=True):
        if own.is_nan.shape[axis] != length * one.scales[axis]:
            raise ValueError(
                f"norm.tiled needs maps whose size is proportional to the input's, but {one.name} has "
                f"{own.is_nan.shape[axis]} positions for {length} and not {length * one.scales[axis]}. A network whose "
                "convolutions don't keep the size (padding=0) can't be tiled."
            )
        other = [number for number in range(own.is_nan.dim()) if number != axis]
        is_nan = own.is_nan.any(other) if other else own.is_nan  # along the axis
        count = int(is_nan.sum())
        ends = is_nan.flip(0) if at_end else is_nan
        if count == len(ends) or not bool(ends[:count].all()):
            return seen.without_numbers or one.name
        reach = max(reach, math.ceil(count / one.scales[axis]) - stride)
    return reach
