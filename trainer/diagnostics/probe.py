"""One optimizer step looked at afterwards: its batch again, at its weights or at any others, by all workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from norm.moments import Moments
from trainer.diagnostics import group
from trainer.diagnostics.layers import watch, weights_of_layers
from trainer.diagnostics.undisturbed import Snapshot, copy_into

Gradient = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """loss: mean over the whole batch. gradient: of that loss, by the names of the parameters; equal on all workers."""

    loss: float
    gradient: Gradient


@dataclass(frozen=True, eq=False)
class Observation(Evaluation):
    """An evaluation at the weights of the step, with what was seen on the way.

    below: what each layer passes to the one below it, the gradient of the same loss with respect to its inputs, for
    this worker's samples. outputs, slopes: as in Seen, over all workers. order: as in Seen.
    """

    below: dict[str, Tensor]
    outputs: dict[str, Moments]
    slopes: dict[str, Tensor]
    order: list[str]


class Probe:
    """Loss and gradients of one batch at weights of one's choice; each time with the statistics, the dropout masks and
    the other random draws that the step itself had.

    batch_loss: the loss of this worker's part of the batch, so weighted that the mean over workers is that of the
    batch. start, end: the network right before and right after the step. lr: the unit of the landscape's steps. scale:
    what the loss is multiplied by while gradients are computed, so that half precision does not lose them.
    Every method is entered by every worker. Used inside `undisturbed`.
    """

    def __init__(
        self,
        network: nn.Module,
        batch_loss: Callable[[], Tensor],
        *,
        start: Snapshot,
        end: Snapshot,
        lr: float,
        scale: float = 1.0,
    ) -> None:
        self.start, self.end, self.lr = start, end, lr
        self.layers = weights_of_layers(network)
        self._network, self._batch_loss, self._scale = network, batch_loss, scale
        self._parameters = {name: tensor for name, tensor in network.named_parameters() if tensor.requires_grad}

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Afterwards network and random generators are as at the end of the step, whatever happened.

        A compiled network runs as it is written meanwhile: what is seen of a pass would be compiled in, and again out.
        """
        compiled, self._network._compiled_call_impl = self._network._compiled_call_impl, None
        try:
            yield
        finally:
            self._network._compiled_call_impl = compiled
            self.end.restore(self._network)

    def evaluate(self, weights: Mapping[str, Tensor]) -> Evaluation:
        """At the weights of the step, but for those given by name."""
        self._go_to(weights)
        loss, gradient, _ = self._backward({})
        return Evaluation(loss, gradient)

    @cached_property
    def observation(self) -> Observation:
        self._go_to({})
        with watch(self._network) as seen:
            loss, gradient, below = self._backward(seen.inputs)
        return Observation(
            loss=loss,
            gradient=gradient,
            below=below,
            outputs=group.union(seen.outputs),
            slopes={path: group.total(counts) for path, counts in seen.slopes.items()},
            order=seen.order,
        )

    def _go_to(self, weights: Mapping[str, Tensor]) -> None:
        self.start.restore(self._network)
        copy_into(self._parameters, weights)

    def _backward(self, inputs: dict[str, list[Tensor]]) -> tuple[float, Gradient, dict[str, Tensor]]:
        # inputs is filled by the forward pass. Not loss.backward(): that would add to .grad and wake DDP.
        with torch.enable_grad():
            loss = self._batch_loss()
            watched = [(path, x) for path, calls in inputs.items() for x in calls]
            wanted = [*self._parameters.values(), *(x for _, x in watched)]
            gradients = torch.autograd.grad(loss * self._scale, wanted, allow_unused=True)
        found = [torch.zeros_like(w) if g is None else g / self._scale for w, g in zip(wanted, gradients, strict=True)]
        own, below = found[: len(self._parameters)], found[len(self._parameters) :]
        mean_loss, *averaged = group.mean([loss.detach(), *own])
        passed: dict[str, list[Tensor]] = {}
        for (path, _), gradient in zip(watched, below, strict=True):
            # Of the mean over workers, of which this worker's loss is one part.
            passed.setdefault(path, []).append(gradient.flatten() / group.world_size())
        return (
            float(mean_loss),
            dict(zip(self._parameters, averaged, strict=True)),
            {path: torch.cat(calls) for path, calls in passed.items()},
        )
