"""Loss and scores of each task, exact over workers and uneven batches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score, MulticlassJaccardIndex

from syncnorm.trainer.data.info import DataInfo


def task_loss(info: DataInfo, output: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy over samples (and, in segmentation, over their pixels, of which all have as many).

    An empty batch gives 0 that still hangs on the model, so that its worker takes part in backward.

    Shape: output (N, num_classes, *spatial), target (N, *spatial) int64 -> ().
    Raises: ValueError if the output has another shape.
    """
    wanted = (target.shape[0], info.num_classes, *target.shape[1:])
    if tuple(output.shape) != wanted:
        raise ValueError(
            f"model must return {wanted} for {info.task} with {info.num_classes} classes, got {tuple(output.shape)}. "
            "Set the number of classes in model.init_args, or use a model for this task."
        )
    if target.shape[0] == 0:
        return output.sum() * 0.0
    return F.cross_entropy(output, target)


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


class Scores(nn.Module):
    """Loss and scores of one stage: `{stage}/loss` and `{stage}/accuracy`, or `{stage}/mean_iou` and `{stage}/dice`.

    All are taken from sums over samples or pixels that torchmetrics adds up over the workers, so neither batch size nor
    world size changes them. mean_iou and dice come from the confusion matrix of all pixels (as in Pascal VOC), averaged
    over the classes that occur; torchmetrics.segmentation averages over batches instead, which depends on their size.
    """

    def __init__(self, info: DataInfo, stage: str, *, loss_only: bool = False) -> None:
        super().__init__()
        self._stage = stage
        self._loss = SampleMean()
        self._scores = nn.ModuleDict({} if loss_only else _scores(info))

    @torch.no_grad()
    def update(self, output: Tensor, target: Tensor, loss: Tensor) -> None:
        """Count a batch. loss: its mean loss. An empty batch counts nothing."""
        self.update_loss(loss, len(target))
        if len(target) == 0:
            return
        for score in self._metrics():
            score.update(output.argmax(1), target)

    def update_loss(self, loss: Tensor, samples: int) -> None:
        """Count the mean loss of a batch alone."""
        self._loss.update(loss, samples)

    def compute(self) -> dict[str, Tensor]:
        """The values over all workers. Every worker must call it."""
        values = {name: metric.compute() for name, metric in self._scores.items()}  # type: ignore[operator]
        return {f"{self._stage}/{name}": value for name, value in {"loss": self._loss.compute(), **values}.items()}

    def reset(self) -> None:
        self._loss.reset()
        for score in self._metrics():
            score.reset()

    def _metrics(self) -> list[Metric]:
        return [metric for metric in self._scores.values() if isinstance(metric, Metric)]


def score_names(info: DataInfo) -> tuple[str, ...]:
    """The scores of a task besides its loss; the first one is the score to compare models by."""
    return tuple(_scores(info))


def _scores(info: DataInfo) -> dict[str, nn.Module]:
    classes = info.num_classes
    if info.task == "classification":
        return {"accuracy": MulticlassAccuracy(classes, average="micro", validate_args=False)}
    return {
        "mean_iou": MulticlassJaccardIndex(classes, average="macro", validate_args=False),
        "dice": MulticlassF1Score(classes, average="macro", validate_args=False),
    }
