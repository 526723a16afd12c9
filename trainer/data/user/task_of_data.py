"""Which task a user's samples are for. Pure."""

from __future__ import annotations

from typing import get_args

from torch import Tensor

from syncnorm.trainer.data.info import DataInfo, Task

TASKS: tuple[Task, ...] = get_args(Task)


def info_of(x: Tensor, target: Tensor, num_classes: int | None, task: object) -> DataInfo | str:
    """The facts about data with such a first sample, or what is wrong with it, in words that follow its name.

    task: what the data module's attribute `task` says; None: the target tells. A whole number is a label, whole numbers
    of the sample's spatial shape a mask, a vector of 0 and 1 labels that may hold together, and floating numbers, alone
    or in a vector, are to be predicted themselves. Floating 0 and 1 in a vector may be both.
    """
    if task is not None and task not in TASKS:
        return f"must have one of {', '.join(TASKS)} in its attribute task, got {task!r}."
    found = task if task is not None else _implied_task(x, target, num_classes)
    if found not in TASKS:
        return str(found)
    if found in ("regression", "multilabel"):
        return _of_vector(found, x, target, num_classes)
    if num_classes is None:
        return (
            "must have an attribute num_classes, the number of classes. For other tasks set its attribute task to "
            "regression (with floating targets) or multilabel."
        )
    return DataInfo(found, num_classes, tuple(x.shape))


def _implied_task(x: Tensor, target: Tensor, num_classes: int | None) -> str:
    is_zero_or_one = bool(((target == 0) | (target == 1)).all())
    if not target.is_floating_point():
        is_mask = target.ndim > 0 and (tuple(target.shape) == tuple(x.shape[1:]) or target.ndim > 1)
        if target.ndim == 0 or is_mask:
            return "segmentation" if is_mask else "classification"
        return "multilabel" if is_zero_or_one and len(target) > 1 else "segmentation"
    if num_classes is not None or (target.ndim == 1 and len(target) > 1 and is_zero_or_one):
        also = f" and {num_classes} classes" if num_classes is not None else ", all of them 0 or 1"
        return (
            f"must say in its attribute task what it is for, because the targets alone don't: they are "
            f"{_described(target)}{also}. Set it to regression or multilabel, or give labels as int64."
        )
    return "regression"


def _of_vector(task: Task, x: Tensor, target: Tensor, num_classes: int | None) -> DataInfo | str:
    size = target.numel()
    if target.ndim > 1 or size == 0:
        return f"must have targets that are numbers or vectors for {task}, got {_described(target)}."
    if task == "multilabel" and (size < 2 or bool(((target != 0) & (target != 1)).any())):
        return f"must have targets of 0 and 1, one for each of at least two labels, got {target.tolist()}."
    if num_classes not in (None, size):
        return f"has num_classes = {num_classes}, but {size} values in a target. Make them the same."
    return DataInfo(task, size, tuple(x.shape))


def _described(target: Tensor) -> str:
    return f"{str(target.dtype).removeprefix('torch.')} of shape {tuple(target.shape)}"
