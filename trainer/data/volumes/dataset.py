"""Data `nifti`: training patches and whole validation volumes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from torch.utils.data import Subset

from syncnorm.trainer.contract.catalog.volume_args import NiftiArgs
from syncnorm.trainer.data.info import Data, DataInfo, Windows
from syncnorm.trainer.data.remote_files import Storage, open_storage
from syncnorm.trainer.data.volumes.cache import Cache, DiskCache, MemoryCache, NoCache, Volume
from syncnorm.trainer.data.volumes.checks import check_headers, check_masks, labels_of
from syncnorm.trainer.data.volumes.nifti_files import nibabel, read_file
from syncnorm.trainer.data.volumes.patches import Patches, WholeVolumes, centres_of
from syncnorm.trainer.data.volumes.preparation import Placement, axes_of, prepared_image
from syncnorm.trainer.data.volumes.records import Record, find_records

_HELD_OUT = 4
"""Patches on which an export is compared; each is as much work as hundreds of images."""
_FORM = 1
"""Of the volumes in a cache, which lie there from one version to the next."""
_SETTINGS = {"channels", "orientation", "spacing", "clip", "normalize", "labels", "num_classes"}
"""Those that a prepared volume depends on."""


@dataclass(frozen=True)
class PreparedVolumes:
    """Volume `index` of these records, prepared, from the cache where it is there."""

    storage: Storage
    records: Sequence[Record]
    args: NiftiArgs
    cache: Cache

    def __call__(self, index: int) -> Volume:
        record = self.records[index]
        return self.cache.get(self._key(record), lambda: self._prepare(record))

    def _prepare(self, record: Record) -> Volume:
        storage, args = self.storage, self.args
        files = [read_file(storage, name) for name in record.images]
        image = prepared_image(storage.where, record.images, files, args)
        mask = read_file(storage, record.mask)
        labels = labels_of(storage, record.mask, mask.data, args)
        placement = Placement.of(mask.header, axes_of(files, args), None).onto(image.shape[1:])
        turned = placement.prepare(labels, nearest=True)
        return Volume(image, turned, centres_of(turned, args.num_classes))

    def _key(self, record: Record) -> str:
        """Differs for other files, changed files and other settings."""
        names = (*record.images, record.mask)
        facts = self.storage.filesystem.ukey if isinstance(self.cache, DiskCache) else str
        files = [facts(str(PurePosixPath(self.storage.path) / name)) for name in names]
        form = self.args.model_dump(include=_SETTINGS)
        return hashlib.sha256(json.dumps([_FORM, self.storage.url, names, files, form]).encode()).hexdigest()


def nifti(args: NiftiArgs, seed: int) -> Data:
    """Raises: ValueError or MissingDataError naming the files that can't be honoured, before any is trained on."""
    nibabel()
    storage = open_storage("data.init_args.root", args.root)
    train, val = find_records(storage, args, seed)
    check_headers(storage, [*train, *val], args)
    if args.check_masks:
        _require_foreground(storage, check_masks(storage, train, args))
        check_masks(storage, val, args)
    cache = _cache(args)
    of_training, of_validation = (PreparedVolumes(storage, records, args, cache) for records in (train, val))
    shown = Patches(of_validation, len(val), args.model_copy(update={"patches_per_volume": _HELD_OUT}), augments=False)
    return Data(
        DataInfo("segmentation", args.num_classes, (args.channels, *args.patch), Windows.of(args)),
        Patches(of_training, len(train), args, augments=True),
        WholeVolumes(of_validation, len(val)),
        num_workers=args.num_workers,
        val_batch_size=1,
        held_out=Subset(shown, range(_HELD_OUT)),
    )


def _cache(args: NiftiArgs) -> Cache:
    if args.cache == "none":
        return NoCache()
    return (MemoryCache if args.cache == "memory" else DiskCache)(int(args.cache_gib * 2**30))


def _require_foreground(storage: Storage, counts: np.ndarray) -> None:
    if not counts[1:].any():
        raise ValueError(
            f"{storage.where}: the masks of the training volumes must hold a class besides 0, the background, but no "
            f"voxel of {storage.url} does. Check the masks, and whether their classes begin with 1."
        )
