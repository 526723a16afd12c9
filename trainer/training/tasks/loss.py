"""The mean loss over samples, of each task or of a function that the spec names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from syncnorm.trainer.data.info import DataInfo
from syncnorm.trainer.training.tasks.dice import dice_cross_entropy

LossFunction = Callable[[Tensor, Tensor], Tensor]
DEFAULTS: dict[str, LossFunction] = {
    "classification": F.cross_entropy,
    "segmentation": F.cross_entropy,
    "regression": F.mse_loss,
    "multilabel": F.binary_cross_entropy_with_logits,
}


@dataclass(frozen=True)
class Loss:
    """function: of output and target, one value or one per sample. masks_have_channel: whether it gets masks as
    (N, 1, *spatial). is_sample_mean: whether the loss of several samples is the mean of theirs, as far as shows."""

    function: LossFunction
    masks_have_channel: bool = False
    is_sample_mean: bool = True

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        return self.function(output, target[:, None] if self.masks_have_channel else target).mean()


def task_loss(info: DataInfo, output: Tensor, target: Tensor, loss: Loss | None = None) -> Tensor:
    """The mean over samples (and over their pixels, numbers or labels, of which all have as many) of `loss`, or else of
    the cross-entropy (with Dice, of volumes), the squared error, or the binary cross-entropy of each label.

    An empty batch gives 0 that still hangs on the model, so that its worker takes part in backward.

    Shape: output (N, num_classes, *spatial) with target (N, *spatial) int64, or, for numbers and labels, output
        (N, num_classes) with target (N, num_classes) -> ().
    Raises: ValueError if the output has another shape.
    """
    target = as_target(info, output, target)
    if target.shape[0] == 0:
        return output.sum() * 0.0
    return (loss or default_loss(info))(output, target)


def default_loss(info: DataInfo) -> Loss:
    """Of patches of volumes Dice and cross-entropy, because most of their voxels are background."""
    return Loss(dice_cross_entropy if info.windows else DEFAULTS[info.task])


def as_target(info: DataInfo, output: Tensor, target: Tensor) -> Tensor:
    """The target in the form that a loss compares with `output`. Raises: ValueError if the output has another shape."""
    if info.is_vector:
        target = (target.flatten(1) if target.ndim > 1 else target[:, None]).to(output.dtype)
        wanted: tuple[int, ...] = (target.shape[0], info.num_classes)
        if tuple(target.shape) != wanted:
            raise ValueError(f"data must have {info.outputs} in each target, got targets of {tuple(target.shape)}.")
    else:
        wanted = (target.shape[0], info.num_classes, *target.shape[1:])
    if tuple(output.shape) != wanted:
        raise ValueError(
            f"model must return {wanted} for {info.task} with {info.outputs}, got {tuple(output.shape)}. "
            "Set the number of outputs in model.init_args, or use a model for this task."
        )
    return target
