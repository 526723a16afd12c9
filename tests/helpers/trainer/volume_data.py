"""Volumes in memory as data `nifti` has them once they are read, without nibabel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Subset

from syncnorm.trainer.contract.catalog.volume_args import NiftiArgs
from syncnorm.trainer.data import Data, DataInfo
from syncnorm.trainer.data.info import Windows
from syncnorm.trainer.data.volumes.cache import Volume
from syncnorm.trainer.data.volumes.patches import Patches, WholeVolumes, centres_of

CLASSES = 3


@dataclass
class Kept:
    volumes: Sequence[Volume]

    def __call__(self, index: int) -> Volume:
        return self.volumes[index]


def balls(count: int, *, seed: int, classes: int = CLASSES) -> list[Volume]:
    """Noise of different sizes, with a bright ball of each class but 0 in it."""
    rng = np.random.default_rng(seed)
    return [_volume(rng, (12 + 2 * (index % 3), 14, 12 + index % 2), classes) for index in range(count)]


def _volume(rng: np.random.Generator, shape: tuple[int, int, int], classes: int) -> Volume:
    mask = np.zeros(shape, np.uint8)
    at = np.stack(np.indices(shape))
    for label in range(1, classes):
        centre = [rng.uniform(3, side - 3) for side in shape]
        mask[((at - np.reshape(centre, (3, 1, 1, 1))) ** 2).sum(0) < 9] = label
    image = rng.normal(0, 0.5, shape) + mask
    return Volume(image[None].astype(np.float32), mask, centres_of(mask, classes))


def args(**changes: object) -> NiftiArgs:
    return NiftiArgs.model_validate({"root": "none", "num_classes": CLASSES, "patch": [8, 8, 8], **changes})


def volume_data(train: int = 3, val: int = 3, **changes: object) -> Data:
    """As `nifti` makes it of so many volumes."""
    form = args(**changes)
    of_training, of_validation = Kept(balls(train, seed=1)), Kept(balls(val, seed=2))
    return Data(
        DataInfo("segmentation", CLASSES, (1, *form.patch), Windows.of(form)),
        Patches(of_training, train, form, augments=True),
        WholeVolumes(of_validation, val),
        val_batch_size=1,
        held_out=Subset(Patches(of_validation, val, form, augments=False), range(2)),
    )
