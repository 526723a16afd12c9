"""Slices of validation volumes with truth and prediction, as pictures for the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from syncnorm.trainer.data.info import Data
from syncnorm.trainer.training.tasks.main_output import main_output
from syncnorm.trainer.training.tasks.task import Task

FOLDER = "validation"
VOLUMES = 3
_ALPHA = 0.5


@torch.no_grad()
def draw_volumes(network: nn.Module, task: Task, data: Data, folder: Path, device: torch.device) -> list[Path]:
    """`volume_0.png` and others, of the first validation volumes. network: in eval mode on `device`."""
    if task.info.windows is None or task.inferer is None:
        return []
    network.eval()
    drawn = []
    for index in range(min(VOLUMES, len(data.val))):  # type: ignore[arg-type]
        image, truth = data.val[index]
        scores = main_output(task.inferer(image[None].to(device), lambda part: main_output(network(part))))
        folder.mkdir(parents=True, exist_ok=True)
        drawn.append(folder / f"volume_{index}.png")
        _draw(image[0].numpy(), truth.numpy(), scores[0].argmax(0).cpu().numpy(), task.info.num_classes, drawn[-1])
    return drawn


def most_foreground(truth_XYZ: np.ndarray, predicted_XYZ: np.ndarray, axis: int) -> int:
    """The slice along `axis` with the most voxels of a class but 0, in the mask or else in the prediction."""
    others = tuple(each for each in range(3) if each != axis)
    counts = (truth_XYZ > 0).sum(others)
    return int((counts if counts.any() else (predicted_XYZ > 0).sum(others)).argmax())


def _draw(image: np.ndarray, truth: np.ndarray, predicted: np.ndarray, num_classes: int, path: Path) -> None:
    """A row for each axis: image, truth, prediction."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 9), layout="constrained")
    FigureCanvasAgg(figure)
    low, high = np.percentile(image, (1, 99))
    for axis, row in enumerate(figure.subplots(3, 3)):
        at = most_foreground(truth, predicted, axis)
        picture, *labels = (np.take(volume, at, axis).T for volume in (image, truth, predicted))
        for axes, label in zip(row, [None, *labels], strict=True):
            axes.imshow(picture, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), origin="lower")
            if label is not None:
                _overlay(axes, label, num_classes)
            axes.set_axis_off()
        row[0].set_title(f"slice {at} of axis {axis}", fontsize=9)
        row[1].set_title("truth", fontsize=9)
        row[2].set_title("prediction", fontsize=9)
    figure.savefig(path, dpi=80)


def _overlay(axes: Any, label: np.ndarray, num_classes: int) -> None:
    from matplotlib import colormaps

    colours = colormaps["tab10"](np.arange(num_classes) % 10)
    colours[:, 3] = _ALPHA
    colours[0, 3] = 0
    axes.imshow(colours[label], origin="lower", interpolation="nearest")
