"""Classification from folders of images, one for each class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath

import numpy as np
import torch

from syncnorm.trainer.contract.catalog.image_args import ImageFolderArgs
from syncnorm.trainer.data.images import SUFFIXES, ImageReader, decode
from syncnorm.trainer.data.info import Data, DataInfo, Sample, Source
from syncnorm.trainer.data.remote_files import Storage, open_storage
from syncnorm.trainer.data.split import stratified_split

Labelled = tuple[str, str]  # file, class


class ImageFiles(Source):
    """Images read from storage each time they are asked for."""

    def __init__(
        self, storage: Storage, files: Sequence[str], labels: Sequence[int], reader: ImageReader, *, augments: bool
    ) -> None:
        self._storage, self._files, self._labels, self._reader = storage, files, labels, reader
        self.augments = augments

    def __len__(self) -> int:
        return len(self._files)

    def read(self, index: int, rng: np.random.Generator | None) -> Sample:
        name = self._files[index]
        image = decode(self._storage.where, name, self._storage.read(name))
        return self._reader.classify(image, rng), torch.tensor(self._labels[index])


def image_folder(args: ImageFolderArgs, seed: int) -> Data:
    """Folders of classes under `root/train` and `root/val`; or under `root`, of which a part is held out."""
    storage = open_storage("data.init_args.root", args.root)
    train, val = _parts(storage, storage.files(SUFFIXES))
    classes = sorted({label for _, label in train})
    _check(storage, classes, val)
    if not val:
        kept, held_out = stratified_split(
            np.array([classes.index(label) for _, label in train]), args.val_fraction, seed
        )
        train, val = [train[index] for index in kept], [train[index] for index in held_out]
    reader = ImageReader(args.size, args.channels)

    def source(part: list[Labelled], *, augments: bool) -> ImageFiles:
        labels = [classes.index(label) for _, label in part]
        return ImageFiles(storage, [name for name, _ in part], labels, reader, augments=augments)

    data = Data(
        DataInfo("classification", len(classes), reader.shape),
        source(train, augments=args.augment),
        source(val, augments=False),
    )
    return replace(data, num_workers=args.num_workers)


def _parts(storage: Storage, files: list[str]) -> tuple[list[Labelled], list[Labelled]]:
    """Files with their classes, for training and for validation (none: hold some out)."""
    paths = [PurePosixPath(name).parts for name in files]
    if any(path[0] == "train" and len(path) > 2 for path in paths):
        parts = {
            part: [("/".join(path), path[1]) for path in paths if path[0] == part and len(path) > 2]
            for part in ("train", "val")
        }
        return parts["train"], parts["val"]
    labelled = [("/".join(path), path[0]) for path in paths if len(path) > 1]
    if not labelled:
        raise ValueError(f"{storage.where}: {storage.url} must hold a folder for each class, got images only.")
    return labelled, []


def _check(storage: Storage, classes: list[str], val: list[Labelled]) -> None:
    if len(classes) < 2:
        raise ValueError(f"{storage.where}: {storage.url} must hold folders of two or more classes, got {classes}.")
    if unknown := sorted({label for _, label in val} - set(classes)):
        raise ValueError(f"{storage.where}: {storage.url}/val has classes that train has not: {', '.join(unknown)}.")
