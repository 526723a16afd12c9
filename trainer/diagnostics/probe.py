"""Replays one optimizer step afterwards: the same batch, at its weights or at others, on all workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from syncnorm.norm.statistics.moments import Moments
from syncnorm.trainer.diagnostics import group
from syncnorm.trainer.diagnostics.observed_layers import watch, weights_of_layers
from syncnorm.trainer.diagnostics.undisturbed import Snapshot, copy_into

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

    batch: this worker's part. loss_of(batch, exactly): its loss, so weighted that the mean over workers is that of the
    whole batch; exactly: in the precision of the parameters, whatever the job computes in.
    start, end: the network right before and right after the step. lr: the unit of the landscape's steps. scale: what
    the loss is multiplied by while gradients are computed, so that half precision does not lose them.
    given_to_optimizer: the gradients that the step took, before clipping; empty where they are of several batches.
    of_one: a process group of worker 0 alone.
    Every method is entered by every worker. Used inside `undisturbed`.
    """

    def __init__(
        self,
        network: nn.Module,
        batch: Any,
        loss_of: Callable[[Any, bool], Tensor],
        *,
        start: Snapshot,
        end: Snapshot,
        lr: float,
        scale: float = 1.0,
        given_to_optimizer: Gradient | None = None,
        of_one: dist.ProcessGroup | None = None,
    ) -> None:
        self.start, self.end, self.lr = start, end, lr
        self.given_to_optimizer = given_to_optimizer or {}
        self.layers = weights_of_layers(network)
        self._network, self._batch, self._loss_of, self._scale = network, batch, loss_of, scale
        self._of_one = of_one
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
        """Evaluate at the weights of the step, except those given by name."""
        self._go_to(weights)
        return self._of_all(*self._differentiate(self._batch, {})[:2])

    def evaluate_exactly(self) -> Evaluation:
        """Evaluate at the weights of the step, without dropout, in the precision of the parameters."""
        self._go_to({}, dropout=False)
        return self._of_all(*self._differentiate(self._batch, {}, exactly=True)[:2])

    def evaluate_single_process(self) -> Evaluation | None:
        """`evaluate_exactly` by one device that has the whole batch to itself: worker 0; None on the others."""
        whole = group.whole(self._batch, next(iter(self._parameters.values())).device)
        if whole is None:
            return None
        self._go_to({}, dropout=False)
        with group.on_its_own(self._network, self._of_one):
            loss, own, _ = self._differentiate(whole, {}, exactly=True)
        return Evaluation(float(loss), dict(zip(self._parameters, own, strict=True)))

    def running_statistics(self) -> dict[str, Tensor]:
        """Copies of the running means and variances after the last evaluation."""
        buffers = self._network.named_buffers()
        return {name: tensor.clone() for name, tensor in buffers if name.endswith(("running_mean", "running_var"))}

    @cached_property
    def observation(self) -> Observation:
        self._go_to({})
        with watch(self._network) as observations:
            loss, own, below = self._differentiate(self._batch, observations.inputs)
        of_all = self._of_all(loss, own)
        return Observation(
            loss=of_all.loss,
            gradient=of_all.gradient,
            below=below,
            outputs=group.union(observations.outputs),
            slopes={path: group.total(counts) for path, counts in observations.slopes.items()},
            order=observations.order,
        )

    def _go_to(self, weights: Mapping[str, Tensor], *, dropout: bool = True) -> None:
        self.start.restore(self._network)
        copy_into(self._parameters, weights)
        for module in self._network.modules():
            if isinstance(module, _DropoutNd):
                module.train(dropout and module.training)

    def _differentiate(
        self, batch: Any, inputs: dict[str, list[Tensor]], *, exactly: bool = False
    ) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
        """Loss and gradients of this worker alone: of the parameters, and of what the layers in `inputs` took."""
        # inputs is filled by the forward pass. Not loss.backward(): that would add to .grad and wake DDP.
        with torch.enable_grad():
            loss = self._loss_of(batch, exactly)
            watched = [(path, x) for path, calls in inputs.items() for x in calls]
            wanted = [*self._parameters.values(), *(x for _, x in watched)]
            gradients = torch.autograd.grad(loss * self._scale, wanted, allow_unused=True)
        found = [torch.zeros_like(w) if g is None else g / self._scale for w, g in zip(wanted, gradients, strict=True)]
        own, below = found[: len(self._parameters)], found[len(self._parameters) :]
        passed: dict[str, list[Tensor]] = {}
        for (path, _), gradient in zip(watched, below, strict=True):
            # Of the mean over workers, of which this worker's loss is one part.
            passed.setdefault(path, []).append(gradient.flatten() / group.world_size())
        return loss.detach(), own, {path: torch.cat(calls) for path, calls in passed.items()}

    def _of_all(self, loss: Tensor, own: list[Tensor]) -> Evaluation:
        mean_loss, *averaged = group.mean([loss, *own])
        return Evaluation(float(mean_loss), dict(zip(self._parameters, averaged, strict=True)))
