"""Slices of validation volumes with truth and prediction, as pictures for the run."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from syncnorm.trainer.data.info import Data

VOLUMES = 3
_ALPHA = 0.5


def volume_pictures(infer: Callable[[Tensor], Tensor], data: Data) -> Iterator[tuple[str, bytes]]:
    """PNG files of the first validation volumes, by name. infer: gives the scores of a batch of volumes."""
    for index in range(min(VOLUMES, len(data.val))):  # type: ignore[arg-type]
        image, truth = data.val[index]
        with torch.no_grad():
            predicted = infer(image[None])[0].argmax(0).cpu().numpy()
        yield f"volume_{index}.png", _draw(image[0].numpy(), truth.numpy(), predicted, data.info.num_classes)


def most_foreground(truth_XYZ: np.ndarray, predicted_XYZ: np.ndarray, axis: int) -> int:
    """The slice along `axis` with the most voxels of a class but 0, in the mask or else in the prediction."""
    others = tuple(each for each in range(3) if each != axis)
    counts = (truth_XYZ > 0).sum(others)
    return int((counts if counts.any() else (predicted_XYZ > 0).sum(others)).argmax())


def _draw(image: np.ndarray, truth: np.ndarray, predicted: np.ndarray, num_classes: int) -> bytes:
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
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=80)
    return png.getvalue()


def _overlay(axes: Any, label: np.ndarray, num_classes: int) -> None:
    from matplotlib import colormaps

    colours = colormaps["tab10"](np.arange(num_classes) % 10)
    colours[:, 3] = _ALPHA
    colours[0, 3] = 0
    axes.imshow(colours[label], origin="lower", interpolation="nearest")
