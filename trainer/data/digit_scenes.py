"""Segmentation scenes composed of the real digits."""

from __future__ import annotations

import numpy as np
import torch

from syncnorm.trainer.contract.catalog.image_args import DigitScenesArgs
from syncnorm.trainer.data.digits import load_digits
from syncnorm.trainer.data.info import Data, DataInfo, Sample, Source
from syncnorm.trainer.data.split import stratified_split

GROUND_STD = 0.25
_DIGIT_SIDE = 8
_INK = 0.25  # a pixel of a digit from which on it counts as that digit
_THICKNESS = 4  # slices of a digit in a 3-D scene
# Of scenes with the default arguments: fixed, so that they depend on no split.
MEAN, STD = 0.05, 0.31


class DigitScenes(Source):
    """Scene i, drawn from (seed, part, i) when it is read.

    A ground of normal noise with standard deviation 0.25, on which 1 to `digits` digits lie at random places, later
    ones over earlier ones, their ink (0..1) times `contrast`; in 3-D each is 4 slices thick. Then the whole scene is
    made brighter or darker: times exp(u), plus v, with u, v uniform in ±exposure. Mask: 0 for the ground, 1 + d for
    digit d.
    """

    def __init__(
        self, args: DigitScenesArgs, seed: int, part: int, *, scenes: int, images: np.ndarray, labels: np.ndarray
    ) -> None:
        self._args, self._key, self._scenes = args, (seed, part), scenes
        self._images, self._labels = images, labels

    def __len__(self) -> int:
        return self._scenes

    def read(self, index: int, rng: np.random.Generator | None) -> Sample:  # noqa: ARG002 - nothing to change
        if not 0 <= index < self._scenes:
            raise IndexError(index)
        draw = np.random.default_rng((*self._key, index))
        shape = (self._args.size,) * self._args.dims
        scene = draw.normal(0, GROUND_STD, shape)
        mask = np.zeros(shape, dtype=np.int64)
        for chosen in draw.integers(len(self._images), size=draw.integers(1, self._args.digits + 1)):
            self._place(draw, scene, mask, self._images[chosen], self._labels[chosen])
        gain, offset = draw.uniform(-self._args.exposure, self._args.exposure, size=2)
        x = (scene * np.exp(gain) + offset - MEAN) / STD
        return torch.from_numpy(x[None].astype(np.float32)), torch.from_numpy(mask)

    def _place(
        self, draw: np.random.Generator, scene: np.ndarray, mask: np.ndarray, image: np.ndarray, label: int
    ) -> None:
        sides = (_THICKNESS,) * (self._args.dims - 2) + (_DIGIT_SIDE, _DIGIT_SIDE)
        corner = [draw.integers(self._args.size - side + 1) for side in sides]
        where = tuple(slice(start, start + side) for start, side in zip(corner, sides, strict=True))
        ink = np.broadcast_to(image, sides)
        scene[where] += ink * self._args.contrast
        mask[where] = np.where(ink >= _INK, label + 1, mask[where])


def digit_scenes(args: DigitScenesArgs, seed: int) -> Data:
    """Training and validation scenes share no digit: 20 % of the digits are kept for validation."""
    images, labels = (loaded.numpy() for loaded in load_digits())
    images, labels = images[labels < args.classes], labels[labels < args.classes]
    train, val = stratified_split(labels, 0.2, seed)
    return Data(
        DataInfo("segmentation", 1 + args.classes, (1, *(args.size,) * args.dims)),
        DigitScenes(args, seed, 0, scenes=args.scenes, images=images[train], labels=labels[train]),
        DigitScenes(args, seed, 1, scenes=args.val_scenes, images=images[val], labels=labels[val]),
    )
