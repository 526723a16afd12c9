"""Gaussian class clusters."""

from __future__ import annotations

import numpy as np
import torch

from syncnorm.trainer.contract.catalog import SyntheticArgs
from syncnorm.trainer.data.info import Data, DataInfo, Sample, Source


class Clusters(Source):
    """Sample i is of class i mod num_classes: that class's centre plus standard normal noise, drawn when it is read.

    Centres are standard normal too, so two classes lie √2 noise deviations apart in every dimension.
    """

    def __init__(self, args: SyntheticArgs, seed: int, *, first: int, samples: int) -> None:
        self._seed, self._first, self._samples = seed, first, samples
        self._centres = np.random.default_rng(seed).standard_normal((args.num_classes, *args.shape), dtype=np.float32)

    def __len__(self) -> int:
        return self._samples

    def read(self, index: int, rng: np.random.Generator | None) -> Sample:  # noqa: ARG002 - nothing to change
        if not 0 <= index < self._samples:
            raise IndexError(index)
        label = index % len(self._centres)
        noise = np.random.default_rng((self._seed, self._first + index))
        x = self._centres[label] + noise.standard_normal(self._centres.shape[1:], dtype=np.float32)
        return torch.from_numpy(x), torch.tensor(label)


def synthetic(args: SyntheticArgs, seed: int) -> Data:
    return Data(
        DataInfo("classification", args.num_classes, tuple(args.shape)),
        Clusters(args, seed, first=0, samples=args.samples),
        Clusters(args, seed, first=args.samples, samples=args.val_samples),
    )
