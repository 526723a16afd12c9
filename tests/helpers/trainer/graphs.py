"""Training with a graph where there is no GPU: a stand-in for the CUDA graph, and modules for it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torchmetrics.classification import MulticlassAccuracy

from syncnorm.trainer.random_state import kept_random_state
from tests.helpers.trainer import few_digits, ranks
from tests.helpers.trainer.ranks import TrainedModel


class RerunGraph:
    """Does the captured work once more where a CUDA graph replays it, and leaves its results in the same tensors."""

    stream = None
    replays = 0
    """Of all graphs of this process."""

    def __init__(self, module: LightningModule) -> None:
        self._module = module
        self._work: Callable[[], Any] = lambda: None
        self._result: Any = None
        self._gradients: list[tuple[nn.Parameter, Tensor]] = []

    def warm_up(self, work: Callable[[], Any]) -> Any:
        return work()

    def capture(self, work: Callable[[], Any]) -> Any:
        held = list(itertools.chain(self._module.parameters(), self._module.buffers()))
        before = [tensor.detach().clone() for tensor in held]
        try:
            with kept_random_state():
                self._work, self._result = work, work()
        finally:
            for tensor, value in zip(held, before, strict=True):
                tensor.data.copy_(value)
        self._gradients = [(each, each.grad) for each in self._module.parameters() if each.grad is not None]
        return self._result

    def replay(self) -> None:
        RerunGraph.replays += 1
        with torch.enable_grad():
            result = self._work()
        for held, found in zip(tree_leaves(self._result), tree_leaves(result), strict=True):
            if isinstance(held, Tensor):
                held.copy_(found)
        for parameter, gradient in self._gradients:
            assert parameter.grad is not None
            gradient.copy_(parameter.grad)


class RefusingGraph(RerunGraph):
    """Fails in the middle of a capture, after the backward pass, as one that waits for the device does."""

    def capture(self, work: Callable[[], Any]) -> Any:
        super().capture(work)
        raise RuntimeError("operation not permitted when stream is capturing")


@dataclass
class GraphedTraining:
    """replays: steps that were replayed. events: that rank 0 reported of the graph."""

    trained: TrainedModel
    replays: int
    events: list[tuple[str, str, dict[str, Any]]]


def train(
    rank: int,
    world_size: int,
    root: str,
    document: dict[str, Any],
    resume_from: str | None = None,
    stop_at: int | None = None,
    graph_of: Callable[[LightningModule], RerunGraph] = RerunGraph,
) -> GraphedTraining:
    """As few_digits.train, with train.graph replayed by `graph_of`."""
    reporter = ranks.RecordingReporter(stop_at=stop_at)
    before = RerunGraph.replays
    with patch("syncnorm.trainer.worker.fit.cuda_graph_of", graph_of):
        trained = few_digits.train(rank, world_size, root, document, resume_from, reporter)
    events = [event for event in reporter.events if event[0].startswith("graph_")]
    return GraphedTraining(trained, RerunGraph.replays - before, events)


class Counts(pl.LightningModule):
    """Logs by step and by epoch, and counts in a metric. With dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))
        self.accuracy = MulticlassAccuracy(3)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.step(batch, batch_idx)

    def step(self, batch: Any, _number: int) -> Any:
        out = self.net(batch[0])
        loss = F.cross_entropy(out, batch[1])
        self.accuracy.update(out, batch[1])
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        self.log("train_accuracy", self.accuracy, on_step=False, on_epoch=True)
        self.log_dict({"largest": out.max(), "least": out.min()}, on_step=False, on_epoch=True, reduce_fx="max")
        return {"loss": loss, "out": out.detach()}

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.01)


class LogsNumbers(Counts):
    """Logs what Python computed."""

    def step(self, batch: Any, _number: int) -> Any:
        self.log("rows", float(len(batch[0])))
        return super().step(batch, _number)


class CallsItsMetric(Counts):
    """Logs the value of a metric for the batch alone."""

    def step(self, batch: Any, _number: int) -> Any:
        self.log("batch_accuracy", self.accuracy(self.net(batch[0]), batch[1]))
        return super().step(batch, _number)


class CountsInPython(Counts):
    """Has a counter of its own."""

    steps = 0

    def step(self, batch: Any, _number: int) -> Any:
        self.steps += 1
        return super().step(batch, _number)


class ReadsTheEpoch(Counts):
    """Has a loss that depends on the epoch, and on the number of the batch."""

    def forward(self, loss: Tensor) -> Tensor:
        return loss * (1 + self.current_epoch)

    def step(self, batch: Any, batch_idx: int) -> Any:
        return {"loss": self(super().step(batch, batch_idx)["loss"]) + (batch_idx % 2)}


class HooksIntoBackward(Counts):
    """Does something between the backward pass and the optimizer."""

    def on_after_backward(self) -> None:
        for parameter in self.parameters():
            parameter.grad.mul_(0.5)


class StepsItself(Counts):
    """Optimizes manually."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def step(self, batch: Any, _number: int) -> Any:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().step(batch, _number)["loss"])
        optimizer.step()


class LeavesSomeOut(Counts):
    """Has parameters that get no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(2, 2)


class StopsDropout(Counts):
    """Trains without dropout from the third epoch on."""

    def on_train_epoch_start(self) -> None:
        self.net[3].train(self.current_epoch < 2)
