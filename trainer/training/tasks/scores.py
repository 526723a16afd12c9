"""Scores of each task, exact over workers and uneven batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassF1Score,
    MulticlassJaccardIndex,
    MultilabelAccuracy,
    MultilabelAveragePrecision,
)
from torchmetrics.utilities import dim_zero_sum

from syncnorm.trainer.data.info import DataInfo
from syncnorm.trainer.ranks.exchange import gather
from syncnorm.trainer.training.tasks.dice import Dice
from syncnorm.trainer.training.tasks.loss import as_target

Form = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""What a score takes of an output and its target."""


class SampleMean(Metric):
    """Mean over samples of values given as means of batches; sums in fp64. A NaN stays, so that it is noticed.

    Not torchmetrics.MeanMetric: it looks for NaN with a device synchronization at every step, and without that it
    forgets the weights (nan_strategy="disable", torchmetrics 1.9).
    """

    full_state_update = False
    total: Tensor
    samples: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("samples", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, mean: Tensor, samples: int) -> None:
        # In place, because assigning to a state of torchmetrics takes longer than adding.
        self.total.add_(mean.detach().double() * samples)
        self.samples.add_(samples)

    def compute(self) -> Tensor:
        return self.total / self.samples


class ErrorMean(Metric):
    """The p-norm of the errors of all samples and numbers, divided by (their number)^(1/p): the mean absolute error for
    p = 1, the root of the mean squared error for p = 2. Sums in fp64; torchmetrics' own sum in fp32."""

    full_state_update = False

    def __init__(self, power: int) -> None:
        super().__init__()
        self._power, self._mean = power, SampleMean()

    def update(self, output: Tensor, target: Tensor) -> None:
        error = output.detach().double() - target.double()
        self._mean.update(error.abs().pow(self._power).mean(), len(target))

    def compute(self) -> Tensor:
        mean: Tensor = self._mean.compute()
        return mean.pow(1 / self._power)

    def reset(self) -> None:
        super().reset()
        self._mean.reset()


class Scores(nn.Module):
    """Loss and scores of one stage, such as `val/loss` and `val/accuracy`; `score_names` has those of a task.

    All are taken from sums over samples or pixels that torchmetrics adds up over the workers, so neither batch size nor
    world size changes them. mean_iou and dice come from the confusion matrix of all pixels (as in Pascal VOC), averaged
    over the classes that occur; torchmetrics.segmentation averages over batches instead, which depends on their size.
    Volumes have the mean of each one's own Dice, see `Dice`.
    map_micro ranks the scores of all labels of all samples together, without bins. Training has no map_micro, which
    would keep every score of an epoch.
    metrics: further ones by name; they get what `measured` gives.
    """

    def __init__(self, info: DataInfo, stage: str, metrics: Mapping[str, Metric] | None = None) -> None:
        super().__init__()
        self._info, self._stage = info, stage
        self._loss = SampleMean()
        self._forms = {name: form for name, (_, form) in _scores(info, stage).items()}
        self._forms |= dict.fromkeys(metrics or {}, measured(info))
        own = {name: metric for name, (metric, _) in _scores(info, stage).items()}
        named = {name: metric.clone() for name, metric in (metrics or {}).items()}
        self._scores = nn.ModuleDict(own | named)

    @torch.no_grad()
    def update(self, output: Tensor, target: Tensor, loss: Tensor) -> None:
        """Count a batch. loss: its mean loss. An empty batch counts nothing."""
        self._loss.update(loss, len(target))
        if len(target) == 0:
            return
        target = as_target(self._info, output, target)
        for name, metric in self._metrics().items():
            metric.update(*self._forms[name](output, target))

    def compute(self) -> dict[str, Tensor]:
        """The values over all workers. Every worker must call it."""
        values = {"loss": self._loss.compute()}
        for name, metric in self._metrics().items():
            value = _value(metric)
            values |= value if isinstance(value, dict) else {name: value}
        return {f"{self._stage}/{name}": value for name, value in values.items()}

    def reset(self) -> None:
        self._loss.reset()
        for metric in self._metrics().values():
            metric.reset()

    def _metrics(self) -> dict[str, Metric]:
        return {name: metric for name, metric in self._scores.items() if isinstance(metric, Metric)}


def score_names(info: DataInfo) -> tuple[str, ...]:
    """The scores of a task besides its loss; the first one is the score to compare models by."""
    return tuple(_scores(info, "val"))


def measured(info: DataInfo) -> Form:
    """What metrics of the spec get: probabilities of classes or labels with integer targets; for regression the numbers
    themselves, (N,) where there is one."""
    if info.task == "regression":
        return _single if info.num_classes == 1 else _as_they_are
    return _label_probabilities if info.task == "multilabel" else _class_probabilities


def _scores(info: DataInfo, stage: str) -> dict[str, tuple[Metric, Form]]:
    count = info.num_classes
    if info.task == "classification":
        return {"accuracy": (MulticlassAccuracy(count, average="micro", validate_args=False), _classes)}
    if info.task == "regression":
        return {"mae": (ErrorMean(1), _as_they_are), "rmse": (ErrorMean(2), _as_they_are)}
    if info.task == "multilabel":
        precision = MultilabelAveragePrecision(count, average="micro", validate_args=False)
        accuracy = MultilabelAccuracy(count, average="micro", validate_args=False)
        ranked = {"map_micro": (precision, _label_probabilities)} if stage == "val" else {}
        return {**ranked, "accuracy": (accuracy, _labels)}
    if info.windows is not None:
        return {"dice": (Dice(count, of_each=stage == "val"), _classes)}
    return {
        "mean_iou": (MulticlassJaccardIndex(count, average="macro", validate_args=False), _classes),
        "dice": (MulticlassF1Score(count, average="macro", validate_args=False), _classes),
    }


def _classes(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    return output.argmax(1), target


def _labels(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    return (output > 0).int(), target.int()


def _as_they_are(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    return output, target


def _single(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    return output.squeeze(1), target.squeeze(1)


def _class_probabilities(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    return output.to(_at_least_fp32(output)).softmax(1), target


def _label_probabilities(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    # torchmetrics takes scores within [0, 1] of one batch for probabilities, and the sigmoid of those of another.
    return output.double().sigmoid(), target.int()


def _at_least_fp32(output: Tensor) -> torch.dtype:
    return torch.promote_types(output.dtype, torch.float32)


def _value(metric: Metric) -> Tensor | dict[str, Tensor]:
    """Over all workers; of Dice also that of each class. torchmetrics adds up sums by itself; other states it can't
    exchange where a worker has none."""
    is_sum = all(reduction is dim_zero_sum for reduction in metric._reductions.values())
    value: Tensor | dict[str, Tensor] = metric.compute() if is_sum else of_all_workers(metric)
    return value


def of_all_workers(metric: Metric) -> Tensor:
    """The value of `metric` over the samples of all workers, as torchmetrics combines the states of those that have
    any. Entered by every worker."""
    own = {name: _on_cpu(getattr(metric, name)) for name in metric._defaults} if metric._update_count else None
    states = [state for state in gather(own) if state is not None]
    if not states:
        return torch.tensor(math.nan)
    whole = metric.clone().cpu()
    for name, reduction in metric._reductions.items():
        setattr(whole, name, _combined([state[name] for state in states], reduction))
    whole._to_sync, whole._update_count, whole._computed = False, 1, None
    value: Tensor = whole.compute()
    return value


def _on_cpu(state: Any) -> Any:
    return [each.cpu() for each in state] if isinstance(state, list) else state.detach().cpu()


def _combined(states: list[Any], reduction: Any) -> Any:
    if len(states) == 1:
        return states[0]
    joined = [each for state in states for each in state] if isinstance(states[0], list) else torch.stack(states)
    return reduction(joined) if reduction is not None else joined
