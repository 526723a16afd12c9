"""What a captured step depends on: another batch or network of the same signature can be replayed."""

from __future__ import annotations

from collections.abc import Hashable
from itertools import chain
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten


def signature_of_batch(batch: Any) -> Hashable:
    """The form of a batch, the shape and layout of its tensors, and its other values, which a graph can't change.

    >>> signature_of_batch([torch.ones(2, 3), "a"]) == signature_of_batch([torch.zeros(2, 3), "a"])
    True
    >>> signature_of_batch([torch.ones(2, 3), "a"]) == signature_of_batch([torch.ones(2, 3), "b"])
    False
    """
    leaves, form = tree_flatten(batch)
    return form, tuple([_signature_of(leaf) for leaf in leaves])


def _signature_of(leaf: Any) -> Hashable:
    if isinstance(leaf, Tensor):
        return tuple(leaf.shape), leaf.stride(), leaf.dtype, leaf.device
    if leaf is None or isinstance(leaf, bool | int | float | str):
        return type(leaf), leaf
    return object()  # equal to no other: nobody knows whether its content changed


def signature_of_network(network: nn.Module) -> Hashable:
    """Where parameters and buffers lie, which are trained, the mode of each layer, and the hooks on it.

    A hook that comes later, such as one that observes a batch, would not be called by a replay.
    """
    layers = [(layer.training, *_hooks_of(layer)) for layer in network.modules()]
    tensors = [(each.data_ptr(), each.requires_grad) for each in chain(network.parameters(), network.buffers())]
    return tuple(layers), tuple(tensors)


def _hooks_of(layer: nn.Module) -> list[int]:
    """The numbers of its hooks, which torch never uses twice."""
    return [
        *layer._forward_pre_hooks,
        *layer._forward_hooks,
        *layer._backward_pre_hooks,
        *layer._backward_hooks,
    ]
