"""Detection from a folder of images and a COCO JSON file."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from syncnorm.trainer.contract.catalog.detection_args import CocoArgs
from syncnorm.trainer.contract.text import counted, name_some
from syncnorm.trainer.data.coco.annotation_file import Annotations, LabelledImage, read_annotations
from syncnorm.trainer.data.coco.instance_masks import masks_of
from syncnorm.trainer.data.coco.transforms import Transform, mirrored, transforms_of
from syncnorm.trainer.data.images import SUFFIXES, decode
from syncnorm.trainer.data.info import Data, DataInfo, Ragged, Sample, Source
from syncnorm.trainer.data.remote_files import Storage, open_storage
from syncnorm.trainer.data.split import tell_overlap
from syncnorm.trainer.errors import MissingDataError

logger = logging.getLogger(__name__)
_ARGS = "data.init_args"
Target = dict[str, Any]


class LabelledImages(Source):
    """Images, float32 (3, H, W) from 0 to 1, with targets as torchvision's detectors take them: `boxes` (N, 4) as
    left, top, right, bottom, `labels` (N,), and `masks` (N, H, W) where they are asked for. Crowds are left out.

    A target also has `image_id`, and of training `draw`: a number from (seed, epoch, index), for what a detector draws
    at random for this image; of validation `truth`: all annotations, crowds included, as in the file.
    """

    def __init__(
        self,
        storage: Storage,
        images: Sequence[LabelledImage],
        *,
        masks: bool,
        is_training: bool = False,
        mirrors: bool = False,
        transforms: Sequence[Transform] = (),
    ) -> None:
        self._storage, self._images, self._has_masks = storage, images, masks
        self._mirrors, self._transforms = mirrors, transforms
        self.augments = is_training  # also without augmentation: each epoch draws other anchors of an image

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int, rng: np.random.Generator | None) -> Sample:
        about = self._images[index]
        image, target = self._image(about), self._target(about)
        if rng is None:
            return image, target | {"truth": [one.record for one in about.instances]}
        target["draw"] = int(rng.integers(2**48))
        if self._mirrors and rng.integers(2):
            image, target = mirrored(image, target)
        for transform in self._transforms:
            image, target = transform(image, target, int(rng.integers(2**48)))
        return image, target

    def _image(self, about: LabelledImage) -> Tensor:
        where = self._storage.where
        image = decode(where, about.file, self._storage.read(about.file))
        if image.size != (about.width, about.height):
            raise ValueError(
                f"{where}: {about.file} has {image.width}x{image.height} pixels, but the annotations of image "
                f"{about.id} say {about.width}x{about.height}. Correct one of them."
            )
        return _as_tensor(image)

    def _target(self, about: LabelledImage) -> Target:
        objects = [one for one in about.instances if not one.is_crowd]
        target: Target = {
            "boxes": torch.tensor([one.box for one in objects], dtype=torch.float32).reshape(-1, 4),
            "labels": torch.tensor([one.label for one in objects], dtype=torch.int64),
            "image_id": about.id,
        }
        if self._has_masks:
            target["masks"] = masks_of([one.record for one in objects], about.width, about.height)
        return target


def _as_tensor(image: Image.Image) -> Tensor:
    x_HWC = np.asarray(image.convert("RGB"), dtype=np.float32) / 255
    return torch.from_numpy(np.ascontiguousarray(x_HWC.transpose(2, 0, 1)))


def as_lists(samples: Sequence[Sample]) -> tuple[Ragged, Ragged]:
    """A batch of images of any size."""
    return Ragged(image for image, _ in samples), Ragged(target for _, target in samples)


def coco(args: CocoArgs, seed: int) -> Data:
    """Images of `root` with `annotations`; validation from a file of its own, or a share, drawn by the seed."""
    storage = open_storage(f"{_ARGS}.root", args.root)
    training = _annotations("annotations", args.annotations, args)
    train: Sequence[LabelledImage]
    val: Sequence[LabelledImage]
    if args.val_annotations is None:
        train, val = _split(training.images, args.val_fraction, seed)
        val_storage = storage
    else:
        val_storage = open_storage(f"{_ARGS}.val_root", args.val_root) if args.val_root else storage
        held_out = _annotations("val_annotations", args.val_annotations, args, training)
        train, val = training.images, held_out.images
        if val_storage.url == storage.url:
            tell_overlap(f"{_ARGS}.val_annotations", (one.file for one in train), (one.file for one in val))
    _require_files(storage, training, train)
    _require_files(val_storage, training, val)
    first = train[0]
    return Data(
        DataInfo(
            "detection",
            len(training.categories),
            (3, first.height, first.width),
            categories=training.categories,
        ),
        LabelledImages(
            storage,
            train,
            masks=args.masks,
            is_training=True,
            mirrors=args.augment,
            transforms=transforms_of(args.transforms),
        ),
        LabelledImages(val_storage, val, masks=False),
        collate=as_lists,
        num_workers=args.num_workers,
        groups=[int(one.width > one.height) for one in train] if args.aspect_ratio_grouping else None,
    )


def _annotations(name: str, url: str, args: CocoArgs, training: Annotations | None = None) -> Annotations:
    known = None if training is None else training.categories
    found = read_annotations(f"{_ARGS}.{name}", url, invalid_boxes=args.invalid_boxes, masks=args.masks, known=known)
    if found.repaired:
        count, some = len(found.repaired), name_some(found.repaired)
        logger.warning("boxes of %s cut to their image or left out: %d, namely %s", url, count, some)
    return found


def _split(
    images: Sequence[LabelledImage], fraction: float, seed: int
) -> tuple[list[LabelledImage], list[LabelledImage]]:
    if len(images) < 2:
        raise ValueError(
            f"{_ARGS}.annotations must have two or more images to hold some out, got {len(images)}. Give "
            "val_annotations."
        )
    order = np.random.default_rng(seed).permutation(len(images))
    held_out = min(max(1, round(len(images) * fraction)), len(images) - 1)
    val, train = np.sort(order[:held_out]), np.sort(order[held_out:])
    return [images[index] for index in train], [images[index] for index in val]


def _require_files(storage: Storage, annotations: Annotations, images: Sequence[LabelledImage]) -> None:
    """Raises: MissingDataError naming images that are not in the folder."""
    present = set(storage.files(SUFFIXES))
    absent: Mapping[str, int] = {one.file: one.id for one in images if one.file not in present}
    if absent:
        names = name_some([f"{file} (image {number})" for file, number in absent.items()])
        raise MissingDataError(
            f"{storage.where}: {storage.url} must hold the {counted(len(images), 'image')} of {annotations.url}, but "
            f"{len(absent)} of them {'is' if len(absent) == 1 else 'are'} not there: {names}."
        )
