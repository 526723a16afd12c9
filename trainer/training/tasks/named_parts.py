"""Loss, metrics and inferer that the spec names by class path, each tried on made-up outputs before training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from syncnorm.trainer.contract.spec import ClassSpec, ModelSpec
from syncnorm.trainer.data.info import DataInfo
from syncnorm.trainer.random_state import seeded
from syncnorm.trainer.training.tasks.detection.detection_task import DetectionTask
from syncnorm.trainer.training.tasks.joint_windows import JointWindows
from syncnorm.trainer.training.tasks.loss import Loss, as_target
from syncnorm.trainer.training.tasks.main_output import main_output
from syncnorm.trainer.training.tasks.scores import measured, score_names
from syncnorm.trainer.training.tasks.sliding_window import SlidingWindow
from syncnorm.trainer.training.tasks.task import Inferer, Objective, Task
from syncnorm.trainer.user_code.class_path import instantiate

SAMPLES, FIRST = 8, 3
LONGEST_SIDE = 32


def named_task(model: ModelSpec, info: DataInfo) -> Objective:
    """The task of the data with the loss, metrics and inferer of `model`.

    Raises: ValueError naming the field of a part that does not fit the task.
    """
    if info.task == "detection":
        require_unnamed(model, "a detector computes its losses itself and is scored by its average precision")
        return DetectionTask(info)
    with seeded(0):
        return Task(
            info,
            None if model.loss is None else _loss(model.loss, info),
            {name: _metric(f"model.metrics.{name}", name, part, info) for name, part in model.metrics.items()},
            volume_inferer(info) if model.inferer is None else _inferer(model.inferer, info),
            dict(model.aux_weights),
        )


def require_unnamed(model: ModelSpec, why: str) -> None:
    """Raises: ValueError naming a field of `model` that is for plain networks only."""
    given = {"loss": model.loss, "metrics": model.metrics, "inferer": model.inferer, "aux_weights": model.aux_weights}
    for name in (name for name, part in given.items() if part):
        raise ValueError(f"model.{name} must be left out: it is for plain networks, but {why}.")


def _made_up(info: DataInfo) -> tuple[Tensor, Tensor]:
    """Outputs and targets of some samples."""
    spatial = [min(side, LONGEST_SIDE) for side in info.shape[1:]] if info.task == "segmentation" else []
    output = torch.randn(SAMPLES, info.num_classes, *spatial)
    if info.task == "regression":
        return output, torch.randn_like(output)
    if info.task == "multilabel":
        return output, torch.randint(2, output.shape)
    return output, torch.randint(info.num_classes, (SAMPLES, *spatial))


def _loss(part: ClassSpec, info: DataInfo) -> Loss:
    function = instantiate("model.loss", part.class_path, part.init_args, fill={})
    if not callable(function):
        raise ValueError(
            f"model.loss must be called with (output, target), but {part.class_path} gave a {_kind(function)}."
        )
    if isinstance(function, nn.Module) and any(True for _ in function.parameters()):
        raise ValueError(
            f"model.loss must have nothing to train, but {part.class_path} has parameters. Use a LightningModule."
        )
    output, target = _made_up(info)
    target = as_target(info, output, target)
    forms = [False, True] if info.task == "segmentation" else [False]
    with _own_words("model.loss", part, output, target):
        value, has_channel = _first_that_runs(function, output, target, forms)
    if not isinstance(value, Tensor) or (value.ndim > 0 and len(value) != SAMPLES):
        got = tuple(value.shape) if isinstance(value, Tensor) else _kind(value)
        raise ValueError(f"model.loss must give one value, or one for each of {SAMPLES} samples, got {got}.")
    return Loss(function, has_channel, _is_sample_mean(Loss(function, has_channel), output, target))


def _first_that_runs(
    function: Callable[..., Any], output: Tensor, target: Tensor, forms: list[bool]
) -> tuple[Any, bool]:
    """The loss, with masks as they are, or else with the channel that MONAI's losses want."""
    *tried, last = forms
    for has_channel in tried:
        try:
            return function(output, target), has_channel
        except Exception:  # the other form's error is raised
            continue
    return function(output, target[:, None] if last else target), last


def _is_sample_mean(loss: Loss, output: Tensor, target: Tensor) -> bool:
    """Whether the loss of samples is the mean of the losses of two parts of them. Raises: ValueError if the sum is."""
    whole, first, second = (
        float(loss(output[part], target[part])) for part in (slice(None), slice(FIRST), slice(FIRST, None))
    )
    close = 1e-4 * max(abs(whole), 1e-6)  # rounding of fp32
    if abs(first + second - whole) < close < abs(whole):
        raise ValueError("model.loss must be a mean over samples, but it is a sum. Set its reduction to mean or none.")
    return abs((FIRST * first + (SAMPLES - FIRST) * second) / SAMPLES - whole) < close


def _metric(where: str, name: str, part: ClassSpec, info: DataInfo) -> Metric:
    if name in ("loss", *score_names(info)):
        raise ValueError(f"{where} must have another name: val/{name} is a score of every job for {info.task}.")
    metric = instantiate(where, part.class_path, part.init_args, fill={})
    if not isinstance(metric, Metric) or any(isinstance(child, Metric) for child in metric.children()):
        raise ValueError(f"{where} must be a single torchmetrics.Metric, but {part.class_path} gave a {_kind(metric)}.")
    output, target = _made_up(info)
    given = measured(info)(output, as_target(info, output, target))
    with _own_words(where, part, *given):
        trial = metric.clone()
        trial.update(*given)
        value = trial.compute()
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {_kind(value)}"
        raise ValueError(
            f"{where} must give one number, but {part.class_path} gave {got}. Set its average, if it has one."
        )
    return metric


def volume_inferer(info: DataInfo) -> Inferer | None:
    """What runs whole volumes; None for samples that the network takes as they are."""
    windows, size = info.windows, info.shape[1:]
    if windows is None:
        return None
    if not windows.is_joint:
        return SlidingWindow(size, windows)
    assert windows.field is not None
    return JointWindows(size, windows.field)


def _inferer(part: ClassSpec, info: DataInfo) -> Inferer:
    if info.windows is not None and info.windows.is_joint:
        raise ValueError(
            f"data.init_args.windows must be separate where model.inferer runs volumes, got joint and "
            f"{part.class_path}. Leave one of the two out."
        )
    inferer: Inferer = instantiate("model.inferer", part.class_path, part.init_args, fill={})
    if not callable(inferer):
        raise ValueError(
            f"model.inferer must be called with (samples, network), but {part.class_path} gave a {_kind(inferer)}."
        )
    x = torch.zeros(2, *info.shape)
    with _own_words("model.inferer", part, x):
        output = main_output(inferer(x, _Zeros(info)))
    if output.shape != (expected := _zeros(x, info).shape):
        raise ValueError(
            f"model.inferer must give outputs of shape {tuple(expected)} for 2 samples, but {part.class_path} gave "
            f"{tuple(output.shape)}."
        )
    return inferer


class _Zeros(nn.Module):
    def __init__(self, info: DataInfo) -> None:
        super().__init__()
        self.info = info

    def forward(self, x: Tensor) -> Tensor:
        return _zeros(x, self.info)


def _zeros(x: Tensor, info: DataInfo) -> Tensor:
    """What a network of the task would return for `x`."""
    return x.new_zeros(len(x), info.num_classes, *(x.shape[2:] if info.task == "segmentation" else ()))


@contextmanager
def _own_words(where: str, part: ClassSpec, *given: Tensor) -> Iterator[None]:
    """Name the field where the code it names can't take what it will be given."""
    try:
        yield
    except Exception as error:
        shapes = " and ".join(f"{str(each.dtype).removeprefix('torch.')} {tuple(each.shape)}" for each in given)
        raise ValueError(
            f"{where} must take {shapes}, but {part.class_path} raised {type(error).__name__}: {error}"
        ) from error


def _kind(value: object) -> str:
    return type(value).__name__
