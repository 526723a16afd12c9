"""One forward pass of two samples before training: does the network accept the data and fit the task?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from syncnorm.trainer.data import DataInfo
from syncnorm.trainer.training.tasks.detection.detection_task import require_predictions
from syncnorm.trainer.training.tasks.main_output import main_output

SAMPLES = 2


def check_forward(network: nn.Module, info: DataInfo) -> None:
    """Run `network` in eval mode on zeros of the data's shape. Changes nothing, draws no random numbers.

    Raises: ValueError naming the layer that does not take what it is given, or the shape of the output where it is not
    (N, num_classes), and (N, num_classes, *positions) for segmentation; of several outputs the main one counts. What
    else the user's own code raises is passed on.
    """
    inside: list[str] = []
    given = ["them"]
    is_detection = info.task == "detection"
    samples = torch.zeros(SAMPLES, *info.shape)
    try:
        with undisturbed(network), _watched(network, inside, given), torch.no_grad():
            output = network(list(samples) if is_detection else samples)
    except (RuntimeError, ValueError) as error:
        path = inside[-1] if inside else ""
        where = f"layer {path} ({type(network.get_submodule(path)).__name__})" if path else type(network).__name__
        raise ValueError(
            f"the network must take samples of shape {info.shape}, but {where} can't take {given[-1]}: "
            f"{error}. Change the model's arguments, or the shape in data.init_args."
        ) from error
    if is_detection:
        require_predictions(network, output)
    else:
        _require_shape(output, info)


def _require_shape(output: Any, info: DataInfo) -> None:
    expected = (SAMPLES, info.num_classes, *(info.shape[1:] if info.task == "segmentation" else ()))
    if (got := tuple(main_output(output).shape)) != expected:
        raise ValueError(
            f"for {SAMPLES} samples the network must return {_WHAT[info.task]} of shape {expected}, got {got}. The "
            f"data has {info.outputs}: give the model as many outputs, or correct {_WHERE[info.task]}."
        )


_WHAT = {
    "classification": "class scores",
    "segmentation": "class scores",
    "regression": "numbers",
    "multilabel": "label scores",
}
_CLASSES = "num_classes of the data"
_WHERE = {
    "classification": _CLASSES,
    "segmentation": _CLASSES,
    "regression": "the targets of the data",
    "multilabel": "the targets of the data",
}


@contextmanager
def undisturbed(network: nn.Module) -> Iterator[None]:
    """In eval mode within, and as before afterwards, the random numbers too."""
    modes = {module: module.training for module in network.modules()}
    with torch.random.fork_rng(devices=[]):
        try:
            network.eval()
            yield
        finally:
            for module, training in modes.items():
                module.training = training


@contextmanager
def _watched(network: nn.Module, inside: list[str], given: list[str]) -> Iterator[None]:
    """Records the path of the layer that is running at the end of `inside`, with its inputs."""

    def enter(path: str, args: tuple[object, ...]) -> None:
        inside.append(path)
        given.append(", ".join(str(tuple(arg.shape)) for arg in args if isinstance(arg, Tensor)) or "what it got")

    def leave() -> None:
        inside.pop()
        given.pop()

    handles = []
    for path, module in network.named_modules():
        handles.append(module.register_forward_pre_hook(lambda _, args, path=path: enter(path, args)))
        handles.append(module.register_forward_hook(lambda *_: leave()))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
