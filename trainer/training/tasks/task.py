"""What a plain network is trained for: the loss, the scores, and how it is validated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from syncnorm.trainer.data.info import Data, DataInfo
from syncnorm.trainer.data.loader import Batch
from syncnorm.trainer.training.tasks.loss import Loss, task_loss
from syncnorm.trainer.training.tasks.main_output import MainOutput, main_output, named_outputs
from syncnorm.trainer.training.tasks.scales import over_scales, score_scales
from syncnorm.trainer.training.tasks.scores import Scores, score_names
from syncnorm.trainer.training.tasks.volume_slices import volume_pictures

Inferer = Callable[[Tensor, nn.Module], Any]
"""Gives the output for a batch by calls of the network, which is its second argument."""


class Objective(Protocol):
    """What a plain network is trained for. A task owns the step: only it knows what its network takes and gives."""

    @property
    def score(self) -> str:
        """The score of validation to compare models by, such as `accuracy`."""

    def step(self, network: nn.Module, batch: Batch, scores: Any | None) -> Tensor:
        """The loss of a training step, so weighted that its mean over the workers is that of the whole batch.

        scores: of training, which count the batch; None: it is not counted.
        """

    def count(self, network: nn.Module, batch: Batch, scores: Any) -> None:
        """Count a validation batch in `scores`."""

    def scores(self, stage: str) -> nn.Module: ...

    def to(self, device: torch.device, dtype: torch.dtype) -> Objective:
        """The task with what it keeps, such as class weights, in this place and precision."""

    def deviations(self, network: nn.Module) -> Iterator[str]:
        """Why a step of several workers is not quite that of one, in words that follow "because"."""

    def pictures(self, network: nn.Module, data: Data) -> Iterator[tuple[str, bytes]]:
        """PNG files of what the trained network, in eval mode, says of some validation samples, by name."""


@dataclass(frozen=True)
class Task:
    """A loss and scores that compare an output with a target.

    loss: in place of that of the data's task. metrics: further scores of validation. inferer: runs the network in
    validation. aux_weights: of the losses of further outputs, by their names."""

    info: DataInfo
    loss: Loss | None = None
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    inferer: Inferer | None = None
    aux_weights: Mapping[str, float] = field(default_factory=dict)

    @property
    def score(self) -> str:
        return score_names(self.info)[0]

    def step(self, network: nn.Module, batch: Batch, scores: Scores | None) -> Tensor:
        """A rank's mean loss is multiplied by its batch's weight, world_size * n_r / N, so that what DDP averages is
        the gradient of the mean over the whole batch, however unevenly it is spread."""
        output, loss = self.training_loss(network(batch.x), batch.y)
        if scores is not None:
            scores.update(output, batch.y, loss)
        return loss * batch.weight

    def training_loss(self, output: Any, target: Tensor) -> tuple[Tensor, Tensor]:
        """The main output, and the loss of all outputs: that of the main one plus weight times that of each other, or
        for volumes that of all resolutions."""
        if self.info.windows is not None and not self.aux_weights:
            scales = score_scales(output, self.info.num_classes, len(self.info.shape) - 1)
            if scales is not None:
                return scales[0], over_scales(scales, target, partial(task_loss, self.info, loss=self.loss))
        if isinstance(output, Tensor) and not self.aux_weights:
            return output, task_loss(self.info, output, target, self.loss)
        outputs = named_outputs(output)
        main = next(iter(outputs.values()))
        loss = task_loss(self.info, main, target, self.loss)
        for name, weight in self.aux_weights.items():
            loss = loss + weight * task_loss(self.info, self._auxiliary(outputs, name), target, self.loss)
        return main, loss

    def _auxiliary(self, outputs: Mapping[str, Tensor], name: str) -> Tensor:
        main, *others = outputs
        if name not in others:
            known = ", ".join(others) or f"none besides {main}, the main one"
            raise ValueError(
                f"model.aux_weights must name further outputs of the network, got {name!r}; it has {known}."
            )
        return outputs[name]

    def count(self, network: nn.Module, batch: Batch, scores: Scores) -> None:
        """By the main output."""
        x, target = batch.x, batch.y
        if self.inferer is not None and len(x) == 0:  # a sliding window can't run over nothing
            return
        output = self._infer(network, x)
        scores.update(output, target, task_loss(self.info, output, target, self.loss))

    def scores(self, stage: str) -> Scores:
        return Scores(self.info, stage, self.metrics if stage == "val" else None)

    def deviations(self, network: nn.Module) -> Iterator[str]:  # noqa: ARG002 - as Objective says
        if self.loss is not None and not self.loss.is_sample_mean:
            yield (
                "model.loss of several samples is not the mean of their losses (as with class weights or ignored "
                "targets), so the mean over the workers is not the loss of the whole batch"
            )

    def pictures(self, network: nn.Module, data: Data) -> Iterator[tuple[str, bytes]]:
        if self.info.windows is not None:
            device = next((each.device for each in network.parameters()), torch.device("cpu"))
            yield from volume_pictures(lambda x: self._infer(network, x.to(device)), data)

    def _infer(self, network: nn.Module, x: Tensor) -> Tensor:
        """The main output, by the inferer where there is one."""
        if self.inferer is None:
            return main_output(network(x))
        return main_output(self.inferer(x, MainOutput(network)))

    def to(self, device: torch.device, dtype: torch.dtype) -> Task:
        if self.loss is None or not isinstance(self.loss.function, nn.Module):
            return self
        return replace(self, loss=replace(self.loss, function=self.loss.function.to(device, dtype)))
