"""Gaussian class clusters, and Gaussian noise with targets that depend on it linearly."""

from __future__ import annotations

import math

import numpy as np
import torch

from syncnorm.trainer.contract.catalog.synthetic_args import SyntheticArgs
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


class LinearTargets(Source):
    """Sample i is standard normal noise x, drawn when it is read. Its targets are W x / sqrt(size of x), standard
    normal too, or whether each of these is above 0."""

    def __init__(self, args: SyntheticArgs, seed: int, *, first: int, samples: int) -> None:
        self._seed, self._first, self._samples, self._shape = seed, first, samples, tuple(args.shape)
        self._are_labels = args.task == "multilabel"
        size = math.prod(args.shape)
        weights = np.random.default_rng(seed).standard_normal((_targets(args), size), dtype=np.float32)
        self._weights = weights / np.sqrt(size, dtype=np.float32)

    def __len__(self) -> int:
        return self._samples

    def read(self, index: int, rng: np.random.Generator | None) -> Sample:  # noqa: ARG002 - nothing to change
        if not 0 <= index < self._samples:
            raise IndexError(index)
        noise = np.random.default_rng((self._seed, self._first + index))
        x = noise.standard_normal(self._shape, dtype=np.float32)
        numbers = self._weights @ x.ravel()
        targets = (numbers > 0).astype(np.float32) if self._are_labels else numbers
        return torch.from_numpy(x), torch.from_numpy(targets)


def synthetic(args: SyntheticArgs, seed: int) -> Data:
    source = Clusters if args.task == "classification" else LinearTargets
    return Data(
        DataInfo(args.task, _targets(args), tuple(args.shape)),
        source(args, seed, first=0, samples=args.samples),
        source(args, seed, first=args.samples, samples=args.val_samples),
    )


def _targets(args: SyntheticArgs) -> int:
    return args.numbers if args.task == "regression" else args.num_classes
