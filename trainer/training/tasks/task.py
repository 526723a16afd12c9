"""What a plain network is trained for: the loss, the scores, and how it is validated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from syncnorm.trainer.data.info import DataInfo
from syncnorm.trainer.training.tasks.loss import Loss, task_loss
from syncnorm.trainer.training.tasks.main_output import main_output, named_outputs
from syncnorm.trainer.training.tasks.scales import over_scales, score_scales
from syncnorm.trainer.training.tasks.scores import Scores

Inferer = Callable[[Tensor, Callable[[Tensor], Tensor]], Any]
"""Gives the output for a batch by calls of the network, which is its second argument."""


@dataclass(frozen=True)
class Task:
    """loss: in place of that of the data's task. metrics: further scores of validation. inferer: runs the network in
    validation. aux_weights: of the losses of further outputs, by their names."""

    info: DataInfo
    loss: Loss | None = None
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    inferer: Inferer | None = None
    aux_weights: Mapping[str, float] = field(default_factory=dict)

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

    def count(self, scores: Scores, network: Callable[[Tensor], Any], x: Tensor, target: Tensor) -> None:
        """Count a validation batch in `scores`, by the main output."""
        if self.inferer is None:
            output = main_output(network(x))
        elif len(x) == 0:  # a sliding window can't run over nothing
            return
        else:
            output = main_output(self.inferer(x, lambda part: main_output(network(part))))
        scores.update(output, target, task_loss(self.info, output, target, self.loss))

    def scores(self, stage: str) -> Scores:
        return Scores(self.info, stage, self.metrics if stage == "val" else None)

    def to(self, device: torch.device, dtype: torch.dtype) -> Task:
        """The task with what the loss keeps, such as class weights, in this place and precision."""
        if self.loss is None or not isinstance(self.loss.function, nn.Module):
            return self
        return replace(self, loss=replace(self.loss, function=self.loss.function.to(device, dtype)))
