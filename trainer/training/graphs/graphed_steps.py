"""Lets Lightning replay training steps: the callback that joins graphs to its loop."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loops.optimization.automatic import Closure, ClosureResult
from lightning.pytorch.loops.optimization.closure import AbstractClosure
from torch import Tensor, nn

from syncnorm.norm.distributed import timing
from syncnorm.trainer.ranks.exchange import gather
from syncnorm.trainer.reporting.reporter import Reporter
from syncnorm.trainer.training.graphs.capture_schedule import PATIENCE, Refusal, Vote, WarmUp, decide
from syncnorm.trainer.training.graphs.captured_step import CapturedStep, capture
from syncnorm.trainer.training.graphs.signatures import signature_of_batch, signature_of_network
from syncnorm.trainer.training.graphs.stale_python import changed, python_state
from syncnorm.trainer.training.graphs.step_graph import StepGraph
from syncnorm.trainer.training.graphs.suitability import reasons_after, reasons_against
from syncnorm.trainer.training.strategy import ReplicaStrategy

logger = logging.getLogger(__name__)

GraphOf = Callable[[LightningModule], StepGraph]


@dataclass(frozen=True)
class _Step:
    """A step that is to be taken. closure_of: gives what Lightning does with a batch: training_step, zero_grad and
    backward. signature: None where no graph can take it."""

    closure_of: Callable[[Any], Closure]
    batch: Any
    signature: Hashable | None

    def run(self) -> ClosureResult:
        return self.closure_of(self.batch).closure()


class GraphedSteps(Callback):
    """Replays what Lightning calls the closure of a step. All that comes after it finds what it finds without a graph.

    Guards against NaN, clipping, and the optimizer with its schedule act on the gradients after each replay. Steps that
    warm up are steps of training, and a capture computes nothing, so no step counts twice.
    """

    def __init__(self, reporter: Reporter, graph_of: GraphOf) -> None:
        self._reporter = reporter
        self._graph_of = graph_of
        self._refusal: Refusal | None = None
        self._warm_up = WarmUp()
        self._changed: list[str] = []
        """The attributes of the module that the last step of the warm-up changed."""
        self._captured: CapturedStep | None = None
        self._missed = 0
        """Steps since the last one that was replayed."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        reason = next(reasons_against(pl_module, trainer.callbacks), None)  # type: ignore[attr-defined]
        if reason is not None:
            self._refuse(trainer, reason)
            return
        self._graph = self._graph_of(pl_module)
        _strategy(trainer).replicate_on(self._graph.stream)
        loop = trainer.fit_loop.epoch_loop.automatic_optimization
        make = loop._make_closure

        def graphed(kwargs: Any, optimizer: Any, batch_idx: int) -> _GraphedClosure:
            def closure_of(batch: Any) -> Closure:
                return make(type(kwargs)(kwargs, batch=batch), optimizer, batch_idx)

            return _GraphedClosure(lambda: self._step(trainer, pl_module, closure_of, kwargs["batch"]))

        loop._make_closure = graphed  # type: ignore[assignment, method-assign]

    def _step(
        self, trainer: Trainer, module: LightningModule, closure_of: Callable[[Any], Closure], batch: Any
    ) -> ClosureResult:
        if self._captured is not None and self._captured.replica is not _replica(trainer):
            self._captured, self._warm_up = None, WarmUp()  # other layers are trained from here on
        step = _Step(closure_of, batch, None if self._refusal else _signature(trainer, module, batch))
        if self._refusal is not None:
            return step.run()
        if self._captured is None:
            return self._before_capture(trainer, module, step)
        if self._captured.signature != step.signature:
            self._count_missed(trainer)
            return step.run()
        self._missed = 0
        _zero_gradients(closure_of(batch))
        return self._captured.replay(batch)

    def _count_missed(self, trainer: Trainer) -> None:
        self._missed += 1
        if self._missed == PATIENCE:
            self._refuse(
                trainer,
                f"none of the last {PATIENCE} steps had the batch of the captured one, with the same layers in train "
                "mode and the same hooks",
            )

    def _before_capture(self, trainer: Trainer, module: LightningModule, step: _Step) -> ClosureResult:
        """A step that warms up, or the first one of the graph."""
        decision = self._decide(trainer, step)
        if isinstance(decision, Refusal):
            self._refuse(trainer, decision.reason)
            return step.run()
        if decision == "capture":
            return self._capture(trainer, module, step)
        self._warm_up.add(step.signature)
        before = python_state(module)
        result = self._graph.warm_up(step.run)
        self._changed = changed(before, python_state(module))
        return result

    def _decide(self, trainer: Trainer, step: _Step) -> str | Refusal:
        """The same on every rank, which all come here at the same step."""
        if not self._warm_up.is_over():
            return "wait"
        problem = next(reasons_after(self._changed, finds_unused=_strategy(trainer).finds_unused), None)
        votes = gather(Vote(self._warm_up.has_warmed(step.signature), problem))
        return decide(votes, self._warm_up.steps)

    def _capture(self, trainer: Trainer, module: LightningModule, step: _Step) -> ClosureResult:
        """The first step of the graph; without one if it can't be captured on every rank."""
        captured, problem = None, None
        try:
            captured = capture(self._graph, module, step.closure_of, step.batch, step.signature, _replica(trainer))
        except Exception as error:  # the step itself is sound: it has run eleven times
            # What invalidates a capture comes before the error at its end, in the first line of its message.
            problem = f"capturing a step failed: {error.__context__ or error}".partition("\n")[0]
        problem = next((each for each in gather(problem) if each), None)
        if captured is None or problem is not None:
            self._refuse(trainer, str(problem))
            # DDP may wait for the gradients of the step that was given up.
            _strategy(trainer).replicate_on(self._graph.stream)
            return step.run()
        self._captured = captured
        self._tell(trainer, "graph_captured", "steps are replayed from a CUDA graph")
        return captured.replay(step.batch)

    def _refuse(self, trainer: Trainer, reason: str) -> None:
        self._refusal = Refusal(reason)
        if trainer.is_global_zero:
            logger.warning("train.graph has no effect; steps run without a CUDA graph: %s", reason)
        self._tell(trainer, "graph_refused", f"steps run without a CUDA graph: {reason}")

    def _tell(self, trainer: Trainer, kind: str, message: str) -> None:
        if trainer.is_global_zero:
            self._reporter.event(kind, message, step=trainer.global_step + 1)


class _GraphedClosure(AbstractClosure[ClosureResult]):
    """What Lightning calls in place of its own closure."""

    def __init__(self, run: Callable[[], ClosureResult]) -> None:
        super().__init__()
        self._run = run

    def closure(self) -> ClosureResult:
        return self._run()

    def __call__(self) -> Tensor | None:
        self._result = self.closure()
        return self._result.loss


def _strategy(trainer: Trainer) -> ReplicaStrategy:
    assert isinstance(trainer.strategy, ReplicaStrategy)
    return trainer.strategy


def _replica(trainer: Trainer) -> nn.Module:
    assert trainer.strategy.model is not None
    return trainer.strategy.model


def _signature(trainer: Trainer, module: LightningModule, batch: Any) -> Hashable | None:
    """None: the step is measured, or its loss has a weight of its own."""
    order = getattr(trainer.train_dataloader, "order", None)
    has_weight = trainer.is_last_batch and order is not None and order.uneven_shares() is not None
    if has_weight or timing.current() is not None:
        return None
    return signature_of_batch(batch), signature_of_network(module)


@torch.enable_grad()
def _zero_gradients(closure: Closure) -> None:
    """With Lightning's hooks and counts."""
    if closure._zero_grad_fn is not None:
        closure._zero_grad_fn()
