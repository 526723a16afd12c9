"""Samples within the inputs of a forward: tensors whose first dimension runs over the samples of a batch.

A tensor in a list or a tuple is one sample's, as detectors take images of different sizes: those are left as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only

from syncnorm.trainer.export.forward_inputs import ForwardInputs

LEAST = 2
"""Samples of an example for torch.export, which takes a batch of one for a constant."""


def count(inputs: ForwardInputs) -> int | None:
    """Samples of a batch; None where no tensor tells."""
    return next((len(tensor) for tensor in batched(inputs)), None)


def batched(inputs: ForwardInputs) -> Iterator[Tensor]:
    """The tensors that hold a value for each sample, as many as the first of them."""
    samples: int | None = None
    for tensor in _outside_of_lists({"args": dict(enumerate(inputs.args)), "kwargs": inputs.kwargs}):
        samples = len(tensor) if samples is None else samples
        if len(tensor) == samples:
            yield tensor


def example(inputs: ForwardInputs) -> ForwardInputs:
    """The first samples of a batch, LEAST of them: a single one is repeated."""
    return _mapped(inputs, lambda tensor: torch.cat([tensor[:LEAST]] * LEAST)[:LEAST])


def first(inputs: ForwardInputs, most: int) -> ForwardInputs:
    """At most the first `most` samples."""
    return _mapped(inputs, lambda tensor: tensor[:most])


def cut(inputs: ForwardInputs, like: ForwardInputs) -> ForwardInputs | None:
    """The middle of pictures and volumes (floating, (N, C, *spatial)), as large as those of `like`. Others stay.

    None where one is smaller than there, or has another number of dimensions.
    """
    wanted = [leaf for leaf in tree_flatten((like.args, like.kwargs))[0] if isinstance(leaf, Tensor)]
    found = [leaf for leaf in tree_flatten((inputs.args, inputs.kwargs))[0] if isinstance(leaf, Tensor)]
    middles = {id(tensor): _middle(tensor, other.shape) for tensor, other in zip(found, wanted, strict=True)}
    if any(middle is None for middle in middles.values()):
        return None
    args, kwargs = tree_map_only(Tensor, lambda tensor: middles[id(tensor)], (inputs.args, inputs.kwargs))
    return ForwardInputs(args, kwargs)


def _middle(tensor: Tensor, shape: Sequence[int]) -> Tensor | None:
    if not tensor.is_floating_point() or tensor.ndim < 4:
        return tensor
    if tensor.ndim != len(shape):
        return None
    for axis, wanted in enumerate(shape[2:], start=2):
        if tensor.shape[axis] < wanted:
            return None
        tensor = tensor.narrow(axis, (tensor.shape[axis] - wanted) // 2, wanted)
    return tensor.contiguous()


def shapes(inputs: ForwardInputs) -> tuple[object, ...]:
    """What must be equal for a file that fixes all but the number of samples: structure, shapes, other values."""
    leaves, structure = tree_flatten((inputs.args, inputs.kwargs))
    varying = {id(tensor) for tensor in batched(inputs)}
    return (structure, *(_shape(leaf, is_batched=id(leaf) in varying) for leaf in leaves))


def _shape(leaf: object, *, is_batched: bool) -> object:
    if not isinstance(leaf, Tensor):
        return repr(leaf)
    return tuple(leaf.shape[1:] if is_batched else leaf.shape), leaf.dtype


def noise_like(inputs: ForwardInputs, seed: int) -> ForwardInputs:
    """Random numbers of the same shapes, means and spreads in place of floating values; others stay."""
    rng = np.random.default_rng(seed)

    def draw(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or not tensor.numel():
            return tensor
        values = tensor.detach().double().cpu().numpy()
        noise = rng.normal(values.mean(), values.std() + 1e-6, values.shape)
        return torch.from_numpy(noise).to(tensor)

    args, kwargs = tree_map_only(Tensor, draw, (inputs.args, inputs.kwargs))
    return ForwardInputs(args, kwargs)


def blank_like(inputs: ForwardInputs) -> ForwardInputs:
    """Zeros of the same shapes in place of floating values; others stay."""

    def blank(tensor: Tensor) -> Tensor:
        return torch.zeros_like(tensor) if tensor.is_floating_point() else tensor

    args, kwargs = tree_map_only(Tensor, blank, (inputs.args, inputs.kwargs))
    return ForwardInputs(args, kwargs)


def _mapped(inputs: ForwardInputs, change: Callable[[Tensor], Tensor]) -> ForwardInputs:
    chosen = {id(tensor) for tensor in batched(inputs)}
    args, kwargs = tree_map_only(
        Tensor, lambda tensor: change(tensor) if id(tensor) in chosen else tensor, (inputs.args, inputs.kwargs)
    )
    return ForwardInputs(args, kwargs)


def _outside_of_lists(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield from [value] if value.ndim else []
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _outside_of_lists(one)
