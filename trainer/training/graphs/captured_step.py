"""One captured step: forward, loss and backward, and where a replay leaves their results."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loops.optimization.automatic import Closure, ClosureResult
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from syncnorm.trainer.training.graphs.deferred_calls import Call, deferred_calls, repeat
from syncnorm.trainer.training.graphs.step_graph import StepGraph


@dataclass(frozen=True)
class CapturedStep:
    """signature: of the batch and the network that it holds for. replica: what DDP made of the network. inputs, loss,
    extra (further results of training_step), calls and gradients have the values of the newest replay."""

    signature: Hashable
    replica: nn.Module
    graph: StepGraph
    module: LightningModule
    inputs: Sequence[Tensor]
    loss: Tensor | None
    extra: dict[str, Any]
    calls: Sequence[Call]
    gradients: Sequence[tuple[nn.Parameter, Tensor]]

    def replay(self, batch: Any) -> ClosureResult:
        """The step for `batch`. What it returns is a copy, which the next replay leaves alone."""
        for held, given in zip(self.inputs, _tensors(batch), strict=True):
            held.copy_(given, non_blocking=True)
        self.graph.replay()
        for parameter, gradient in self.gradients:
            parameter.grad = gradient
        repeat(self.calls, self.module)
        return ClosureResult(self.loss, extra=tree_map_only(Tensor, torch.clone, self.extra))


def capture(
    graph: StepGraph,
    module: LightningModule,
    closure_of: Callable[[Any], Closure],
    batch: Any,
    signature: Hashable,
    replica: nn.Module,
) -> CapturedStep:
    """Capture the step that `closure_of` gives for `batch`, without taking it. Raises: what stands against it."""
    held = tree_map_only(Tensor, torch.clone, batch)
    closure = closure_of(held)

    def work() -> tuple[Tensor | None, dict[str, Any], list[Call]]:
        with deferred_calls(module) as calls:
            result = closure.closure()
        loss = None if result.closure_loss is None else result.closure_loss.detach()
        return loss, tree_map_only(Tensor, Tensor.detach, result.extra), calls

    loss, extra, calls = graph.capture(work)
    gradients = [(each, each.grad) for each in module.parameters() if each.grad is not None]
    return CapturedStep(signature, replica, graph, module, _tensors(held), loss, extra, calls, gradients)


def _tensors(batch: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)]
