"""Training samples cut from volumes at random, and volumes as validation samples."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from syncnorm.trainer.contract.catalog.volume_args import NiftiArgs
from syncnorm.trainer.data.info import Sample, Source
from syncnorm.trainer.data.volumes.cache import Volume

PER_CLASS = 10_000
Reader = Callable[[int], Volume]
"""Gives volume `index`."""


class Patches(Source):
    """Sample i is patch i mod args.patches_per_volume of volume i // args.patches_per_volume.

    With a generator, its place and its flips are drawn from that; without one its place is the same each time, and
    nothing is flipped.
    """

    def __init__(self, read: Reader, volumes: int, args: NiftiArgs, *, augments: bool) -> None:
        self._read, self._volumes, self._args = read, volumes, args
        self.augments = augments

    def __len__(self) -> int:
        return self._volumes * self._args.patches_per_volume

    def read(self, index: int, rng: np.random.Generator | None) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        volume, part = divmod(index, self._args.patches_per_volume)
        found = self._read(volume)
        draw = rng or np.random.default_rng(index)
        wanted = is_foreground(part, self._args, draw) and len(found.centres) > 0
        corner = (_around_foreground if wanted else _anywhere)(found, self._args.patch, draw)
        where = tuple(slice(at, at + side) for at, side in zip(corner, self._args.patch, strict=True))
        image, mask = found.image[(slice(None), *where)], found.mask[where]
        for axis in self._args.flips if rng is not None else ():
            if draw.integers(2):
                image, mask = np.flip(image, axis + 1), np.flip(mask, axis)
        return _tensors(image, mask)


class WholeVolumes(Source):
    """Sample i is volume i; they differ in size."""

    def __init__(self, read: Reader, volumes: int) -> None:
        self._read, self._volumes = read, volumes

    def __len__(self) -> int:
        return self._volumes

    def read(self, index: int, rng: np.random.Generator | None) -> Sample:  # noqa: ARG002 - nothing to change
        if not 0 <= index < self._volumes:
            raise IndexError(index)
        found = self._read(index)
        return _tensors(found.image, found.mask)


def centres_of(mask_XYZ: np.ndarray, num_classes: int) -> np.ndarray:
    """(class, flat index) of at most PER_CLASS voxels of each class but 0, always the same for a mask."""
    rng, flat, found = np.random.default_rng(0), mask_XYZ.ravel(), [np.empty((0, 2), np.int64)]
    for label in range(1, num_classes):
        voxels = np.flatnonzero(flat == label)
        chosen = rng.choice(voxels, PER_CLASS, replace=False) if len(voxels) > PER_CLASS else voxels
        found.append(np.stack([np.full_like(chosen, label), chosen], axis=1))
    return np.concatenate(found)


def is_foreground(part: int, args: NiftiArgs, rng: np.random.Generator) -> bool:
    """Whether patch `part` of a volume is centred on foreground: as many as args.foreground says, and where that is no
    whole number, one more with the probability of the rest."""
    sure = int(args.patches_per_volume * args.foreground)
    rest = args.patches_per_volume * args.foreground - sure
    return part < sure or (part == sure and bool(rng.random() < rest))


def _around_foreground(volume: Volume, patch: list[int], rng: np.random.Generator) -> list[int]:
    labels = volume.centres[:, 0]
    of_class = volume.centres[labels == rng.choice(np.unique(labels))]
    centre = np.unravel_index(of_class[rng.integers(len(of_class)), 1], volume.mask.shape)
    shape = volume.mask.shape
    return [
        min(max(int(at) - side // 2, 0), length - side) for at, side, length in zip(centre, patch, shape, strict=True)
    ]


def _anywhere(volume: Volume, patch: list[int], rng: np.random.Generator) -> list[int]:
    return [int(rng.integers(length - side + 1)) for length, side in zip(volume.mask.shape, patch, strict=True)]


def _tensors(image: np.ndarray, mask: np.ndarray) -> Sample:
    return torch.from_numpy(np.array(image)), torch.from_numpy(mask.astype(np.int64))
