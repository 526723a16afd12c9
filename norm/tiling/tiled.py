"""A network over a picture by tiles, which together give what the whole picture gives."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from syncnorm.norm.accumulation.joint_layers import batch_layers, takes_batch
from syncnorm.norm.lockstep.interruption import require_interruptible
from syncnorm.norm.lockstep.turns import meet, run_in_turns
from syncnorm.norm.statistics.moments import Moments, merge
from syncnorm.norm.tiling.layout import Tile, cores, places, slices, tiles_of
from syncnorm.norm.tiling.nested import leaves, replaced
from syncnorm.norm.tiling.receptive_field import Geometry, Map, measure
from syncnorm.norm.tiling.refused_functions import require_local
from syncnorm.norm.tiling.sample_statistics import Normalization, read_call
from syncnorm.norm.tiling.waiting_tensors import HostMemory, WaitingTensors

Sides = int | Sequence[int]
MOST_TILES = 512


@torch.no_grad()
def tiled(model: nn.Module, x: Tensor, *, tile: Sides, halo: Sides | Literal["auto"] = "auto") -> Any:
    """What `model` gives for the picture or volume x, computed by tiles: k tiles equal one picture, up to rounding.

    Tiles run side by side, layer by layer. At a normalization that takes statistics of the sample they wait for each
    other, and mean and variance are those of the whole picture: each position counts once, and none of a halo. So the
    kinds group, layer, instance, weight_standardization, filter_response and evo_s0 answer as for the whole, and so do
    the group and instance normalizations of torch and of other libraries. Kinds with running statistics simply run.

        y = norm.tiled(model, volume, tile=(96, 96, 96))

    y = f(x), with (count, mean, m2) of each sample and group merged over the tiles' own positions, as
    mean = sum(n_i mean_i) / n and m2 = sum(m2_i + n_i (mean_i - mean)^2).

    model: in eval mode, called with one tensor. Shape: x (N, C, *) with 1, 2 or 3 spatial dimensions of any size that
        the model takes. The output has that of the whole picture. Also several outputs, in lists, tuples or mappings,
        and of other resolutions. x may lie on another device than the model, such as in host memory: tiles travel to
        the model's, and the outputs come back to that of x.
    tile: positions a tile gives, a number for all dimensions or one for each. A multiple of the total stride, such as
        of 16 in a U-Net of depth 4. A dimension that is no longer than its tile stays whole.
    halo: positions more that a tile sees at each inner side. It must be as far as the network looks. `auto` measures
        that by a few runs on strips, with one end set to NaN.

    Memory: the device holds one tile's tensors at a time. Those of waiting tiles lie in host memory, for one layer and
    its open shortcuts. On a CPU both are the same memory, and only what a layer needs for itself shrinks.
    Raises: ValueError if the halo is smaller than the network needs (saying what it needs), if the tile is no multiple
    of the total stride, for what depends on the size of the picture (global and adaptive pooling, attention over the
    picture, circular padding, align_corners=True), naming the module, and for models in training mode, compiled ones,
    or ones whose convolutions don't keep the size. Absolute positions, as of a grid of coordinates that the model adds,
    are not noticed.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(4, 8), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()
    >>> x = torch.randn(1, 3, 40, 30)
    >>> y = norm.tiled(model, x, tile=16)
    >>> torch.testing.assert_close(y, model(x), rtol=0, atol=1e-5)
    >>> norm.tiled(model, x, tile=16, halo=0)
    Traceback (most recent call last):
    ValueError: halo must be at least (1, 1), which is as far as the network looks, got (0, 0). …
    """
    _require_inference(model)
    _require_picture(x)
    device = next((parameter.device for parameter in model.parameters()), x.device)
    sides = _per_axis("tile", tile, x.dim() - 2, 1)
    if all(side >= length for side, length in zip(sides, x.shape[2:], strict=True)):
        whole = model(x.to(device))
        return replaced(whole, iter([leaf.to(x.device) for leaf in leaves(whole)]))
    geometry = measure(model, x, sides, device)
    width = geometry.reach if halo == "auto" else _halo(halo, geometry)
    tiles = tiles_of(x.shape[2:], sides, width, geometry.strides)
    if len(tiles) > MOST_TILES:
        raise ValueError(
            f"norm.tiled takes at most {MOST_TILES} tiles, each of which has a thread, but tiles of {sides} make "
            f"{len(tiles)} of {tuple(x.shape[2:])}. Use larger tiles."
        )
    canvas, memory = _Canvas(geometry.outputs, x.device), HostMemory(model)
    forwards = [partial(_run_tile, model, x, one, geometry, device, memory, canvas) for one in tiles]
    run_in_turns(forwards, "tile")
    return replaced(canvas.structure, iter(canvas.wholes))


def _run_tile(
    model: nn.Module,
    x: Tensor,
    tile: Tile,
    geometry: Geometry,
    device: torch.device,
    memory: HostMemory,
    canvas: _Canvas,
) -> None:
    waiting = WaitingTensors(memory)
    part = x[(slice(None), slice(None), *slices(tile))].to(device, copy=True)
    waiting.note(part)
    with _Joining(tile, geometry.meetings, memory, waiting):
        output = model(part)
    canvas.put(tile, output)


class _Joining(TorchFunctionMode):
    """Gives the normalizations of one tile's forward the statistics of all tiles."""

    def __init__(self, tile: Tile, meetings: Sequence[Map], memory: HostMemory, waiting: WaitingTensors) -> None:
        super().__init__()
        self._tile, self._meetings, self._memory, self._waiting = tile, meetings, memory, waiting
        self._cut = [axis for axis, one in enumerate(tile) if one.core_stop - one.core_start < one.side]
        self._count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        self._memory.require((args, kwargs))
        call = read_call(func, args, kwargs)
        if call is None:
            require_local(func, args, kwargs, "an interpolation of this model", self._cut)
            result = func(*args, **kwargs)
        else:
            result = self._normalized(func, call)
        self._waiting.note(result)
        return result

    def _normalized(self, func: Any, call: Normalization) -> Any:
        one = self._next(func, call)
        own = cores(self._tile, one.scales, call.x.shape[2:])
        measured = call.measure(call.x[(slice(None), slice(None), *own)])
        self._waiting.leave()
        moments = meet(one, one.name, measured, _merged)
        self._waiting.enter()
        return call.finish(moments)

    def _next(self, func: Any, call: Normalization) -> Map:
        known = self._meetings[self._count] if self._count < len(self._meetings) else None
        self._count += 1
        if known is None or known.function is not func or known.weight is not call.weight:
            raise ValueError(
                "norm.tiled needs a model that passes through the same normalization layers in the same order for "
                f"every input, but a tile comes to another one than {known.name if known else 'its end'}. Run the "
                "whole picture."
            )
        return known


def _merged(parts: list[Moments]) -> list[Moments]:
    columns = [torch.stack(column) for column in zip(*((p.count, p.mean, p.m2) for p in parts), strict=True)]
    return [merge(*columns)] * len(parts)


class _Canvas:
    """The outputs of the whole picture. structure: how the tensors in `wholes` are nested."""

    def __init__(self, maps: Sequence[Map], device: torch.device) -> None:
        self.structure: Any = None
        self.wholes: list[Tensor] = []
        self._maps, self._device = maps, device

    def put(self, tile: Tile, output: Any) -> None:
        """The first one must be the tile at the end of all axes, whose own positions tell the size of the whole."""
        for number, (leaf, one) in enumerate(zip(leaves(output), self._maps, strict=True)):
            own = leaf[(slice(None), slice(None), *cores(tile, one.scales, leaf.shape[2:]))]
            where = places(tile, one.scales, own.shape[2:])
            if number == len(self.wholes):
                size = *own.shape[:2], *(side.stop for side in where)
                self.wholes.append(torch.empty(size, dtype=own.dtype, device=self._device))
            self.wholes[number][(slice(None), slice(None), *where)] = own
        if self.structure is None:
            self.structure = replaced(output, iter(self.wholes))


def _require_inference(model: nn.Module) -> None:
    require_interruptible(model, "norm.tiled")
    training = next((path or "the model" for path, layer in batch_layers(model).items() if takes_batch(layer)), None)
    if training is None and model.training:
        training = "the model"
    if training is not None:
        raise ValueError(
            f"norm.tiled is for inference, but {training} is in training mode or normalizes by the batch. Call "
            "model.eval(), and recompute running statistics that are missing."
        )


def _require_picture(x: Tensor) -> None:
    if x.dim() not in (3, 4, 5) or not x.is_floating_point() or 0 in x.shape:
        raise ValueError(
            "norm.tiled needs x of floating-point numbers and shape (N, C, *) with 1, 2 or 3 spatial dimensions, got "
            f"{tuple(x.shape)} of {x.dtype}. Add the dimensions of samples and channels, as by x[None, None]."
        )


def _per_axis(name: str, given: Sides, dims: int, least: int) -> tuple[int, ...]:
    numbers = (given,) * dims if isinstance(given, int) else tuple(given)
    if len(numbers) != dims or not all(type(one) is int and one >= least for one in numbers):
        raise ValueError(
            f"{name} must be a whole number of at least {least}, or {dims} of them, one for each spatial dimension, "
            f"got {given!r}."
        )
    return numbers


def _halo(given: Sides, geometry: Geometry) -> tuple[int, ...]:
    halo = _per_axis("halo", given, len(geometry.strides), 0)
    if any(own < reach for own, reach in zip(halo, geometry.reach, strict=True)):
        raise ValueError(
            f"halo must be at least {geometry.reach}, which is as far as the network looks, got {halo}. Use that, or "
            'halo="auto".'
        )
    if any(own % stride for own, stride in zip(halo, geometry.strides, strict=True)):
        raise ValueError(
            f"halo must be a multiple of the network's total stride {geometry.strides}, got {halo}. Use "
            f'{geometry.reach}, or halo="auto".'
        )
    return halo
