"""Segmentation from a folder of images and one of masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np
from PIL import Image

from syncnorm.trainer.contract.catalog.image_args import SegmentationFolderArgs
from syncnorm.trainer.data.images import SUFFIXES, ImageReader, decode, random_box
from syncnorm.trainer.data.info import Data, DataInfo, Sample, Source
from syncnorm.trainer.data.remote_files import Storage, open_storage
from syncnorm.trainer.errors import MissingDataError

Pair = tuple[str, str]  # image, mask


class MaskedImages(Source):
    """Images and masks, read from storage at every access; both are cropped and mirrored alike."""

    def __init__(
        self, storage: Storage, pairs: Sequence[Pair], reader: ImageReader, num_classes: int, *, augments: bool
    ) -> None:
        self._storage, self._pairs, self._reader, self._num_classes = storage, pairs, reader, num_classes
        self.augments = augments

    def __len__(self) -> int:
        return len(self._pairs)

    def read(self, index: int, rng: np.random.Generator | None) -> Sample:
        image, mask = (decode(self._storage.where, name, self._storage.read(name)) for name in self._pairs[index])
        self._check(image, mask, self._pairs[index][1])
        box, mirror = (0.0, 0.0, float(image.width), float(image.height)), False
        if rng is not None:
            box, mirror = random_box(*image.size, rng, least_area=0.25), bool(rng.integers(2))
        return self._reader.tensor(image, box, mirror=mirror), self._reader.mask(mask, box, mirror=mirror)

    def _check(self, image: Image.Image, mask: Image.Image, name: str) -> None:
        where = self._storage.where
        if mask.mode not in ("L", "P", "I", "I;16", "1"):
            raise ValueError(
                f"{where}: {name} must have one value a pixel, its class; got a picture of mode {mask.mode}."
            )
        if mask.size != image.size:
            raise ValueError(f"{where}: {name} must be as large as its image, got {mask.size} for {image.size}.")
        if (largest := int(np.asarray(mask).max())) >= self._num_classes:
            raise ValueError(
                f"{where}: {name} holds the class {largest}, but data.init_args.num_classes is {self._num_classes}, "
                f"so values must be 0 to {self._num_classes - 1}."
            )


def segmentation_folder(args: SegmentationFolderArgs, seed: int) -> Data:
    """`root/images/NAME.*` with `root/masks/NAME.*`; a share, drawn by the seed, is held out."""
    storage = open_storage("data.init_args.root", args.root)
    pairs = _pairs(storage, storage.files(SUFFIXES))
    order = np.random.default_rng(seed).permutation(len(pairs))
    held_out = min(max(1, round(len(pairs) * args.val_fraction)), len(pairs) - 1)
    val, train = np.sort(order[:held_out]), np.sort(order[held_out:])
    reader = ImageReader(args.size, args.channels)

    def source(part: np.ndarray, *, augments: bool) -> MaskedImages:
        return MaskedImages(storage, [pairs[index] for index in part], reader, args.num_classes, augments=augments)

    return Data(
        DataInfo("segmentation", args.num_classes, reader.shape),
        source(train, augments=args.augment),
        source(val, augments=False),
        num_workers=args.num_workers,
    )


def _pairs(storage: Storage, files: list[str]) -> list[Pair]:
    images, masks = (_by_stem(files, folder) for folder in ("images", "masks"))
    if len(images) < 2:
        raise MissingDataError(
            f"{storage.where}: {storage.url}/images must hold two or more images, got {len(images)}."
        )
    if lonely := sorted(images.keys() - masks.keys()):
        raise MissingDataError(
            f"{storage.where}: {storage.url}/masks must have a mask for every image; there is none for "
            f"{', '.join(lonely[:5])}{' and others' if len(lonely) > 5 else ''}."
        )
    return [(images[stem], masks[stem]) for stem in sorted(images)]


def _by_stem(files: list[str], folder: str) -> dict[str, str]:
    """{path below `folder` without suffix: path}."""
    paths = [PurePosixPath(name) for name in files]
    return {str(p.relative_to(folder).with_suffix("")): str(p) for p in paths if p.is_relative_to(folder)}
