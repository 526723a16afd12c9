"""The real digits that come with scikit-learn."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch

from syncnorm.trainer.contract.catalog.image_args import DigitsArgs
from syncnorm.trainer.data.info import Data, DataInfo, Sample, Source
from syncnorm.trainer.data.split import stratified_split

# Mean and standard deviation of all 1,797 images after division by 16: fixed, so that they depend on no split.
MEAN, STD = 0.3053, 0.3760


class Images(Source):
    """Images in memory. shift: most pixels by which an image is moved at random, zeros of the ground moving in."""

    def __init__(self, x_NCHW: torch.Tensor, y_N: torch.Tensor, *, shift: int = 0, ground: float = 0.0) -> None:
        self._x, self._y = x_NCHW, y_N
        self._shift, self._ground = shift, ground
        self.augments = shift > 0

    def __len__(self) -> int:
        return len(self._y)

    def read(self, index: int, rng: np.random.Generator | None) -> Sample:
        x = self._x[index]
        if rng is not None and self._shift:
            down, right = rng.integers(-self._shift, self._shift + 1, size=2).tolist()
            x = _move(x, down, right, self._ground)
        return x, self._y[index]


def load_digits() -> tuple[torch.Tensor, torch.Tensor]:
    """All images, values in 0..1, as (N, 8, 8) float32, and their labels as (N,) int64.

    Read from the file in scikit-learn's package: importing scikit-learn takes each worker 1.5 s of processor time.
    """
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("data digits needs scikit-learn, which is not installed: pip install scikit-learn.")
    file = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    table = np.loadtxt(file, delimiter=",", dtype=np.int64)
    images, labels = table[:, :-1].reshape(-1, 8, 8), table[:, -1]
    return torch.from_numpy(images / 16).float(), torch.from_numpy(labels)


def digits(args: DigitsArgs, seed: int) -> Data:
    images, labels = load_digits()
    x, y = ((images - MEAN) / STD)[:, None], labels
    train, val = (torch.from_numpy(part) for part in stratified_split(y.numpy(), args.val_fraction, seed))
    return Data(
        DataInfo("classification", 10, (1, 8, 8)),
        Images(x[train], y[train], shift=1 if args.augment else 0, ground=-MEAN / STD),
        Images(x[val], y[val]),
    )


def _move(x_CHW: torch.Tensor, down: int, right: int, ground: float) -> torch.Tensor:
    height, width = x_CHW.shape[1:]
    out = torch.full_like(x_CHW, ground)
    out[:, max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)] = x_CHW[
        :, max(-down, 0) : height + min(-down, 0), max(-right, 0) : width + min(-right, 0)
    ]
    return out
