"""Activation checkpointing runs a forward again during backward: with the statistics of the first run, not new ones."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor, nn

from syncnorm.norm.statistics.moments import Exchanged
from syncnorm.norm.torch_compat import is_in_backward, saves_tensors_through_hooks

# Calls without a graph (reentrant checkpointing, or no_grad) say nothing about how long they may be wanted.
_WITHOUT_GRAPH = 32


class _Calls:
    """The exchanges of one layer whose forward may be run again."""

    def __init__(self) -> None:
        self.with_graph: list[tuple[torch.Size, weakref.ref[Exchanged]]] = []
        self.without_graph: deque[tuple[torch.Size, Exchanged]] = deque(maxlen=_WITHOUT_GRAPH)
        self.recomputing = False

    def candidates(self, shape: torch.Size) -> list[Exchanged]:
        alive = [(size, found) for size, ref in self.with_graph if (found := ref()) is not None]
        return [found for size, found in [*alive, *self.without_graph] if size == shape]


_CALLS: weakref.WeakKeyDictionary[nn.Module, _Calls] = weakref.WeakKeyDictionary()


def remember(layer: nn.Module, x: Tensor, exchanged: Exchanged, y: Tensor) -> None:
    """Keep what `layer` exchanged for x while the graph of y lives, if its forward may be run again.

    Checkpointing either runs the forward without gradients (reentrant) or under hooks on saved tensors.
    """
    if y.requires_grad and not saves_tensors_through_hooks():
        return
    calls = _CALLS.get(layer)
    if calls is None:
        calls = _CALLS[layer] = _Calls()
    if calls.recomputing:  # a forward after a backward: what had no graph has been used
        calls.recomputing = False
        calls.without_graph.clear()
    if y.requires_grad:
        assert y.grad_fn is not None
        metadata: dict[str, object] = y.grad_fn.metadata  # type: ignore[assignment]
        metadata["syncnorm"] = exchanged  # the graph owns it; here is only a weak reference
        calls.with_graph = [call for call in calls.with_graph if call[1]() is not None]
        calls.with_graph.append((x.shape, weakref.ref(exchanged)))
    else:
        calls.without_graph.append((x.shape, exchanged))


def recall(layer: nn.Module, x: Tensor, measure: Callable[[Tensor], Tensor]) -> Exchanged | None:
    """What `layer` exchanged when it saw x before, if this is a second run of a forward inside a backward."""
    if not is_in_backward() or (calls := _CALLS.get(layer)) is None:
        return None
    calls.recomputing = True
    candidates = calls.candidates(x.shape)
    if len(candidates) <= 1:
        return candidates[0] if candidates else None
    # The layer ran several times on this shape: the run whose own statistics are nearest to those of x.
    local = measure(x.detach())
    distances = torch.stack([(found.local - local).square().sum() for found in candidates])
    return candidates[int(distances.nan_to_num(torch.inf).argmin())]
