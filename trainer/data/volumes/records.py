"""Which files belong together: the image files of a volume, and its mask."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from syncnorm.trainer.contract.catalog.volume_args import NiftiArgs
from syncnorm.trainer.contract.text import name_some
from syncnorm.trainer.data.remote_files import Storage
from syncnorm.trainer.data.split import tell_overlap
from syncnorm.trainer.data.volumes.nifti_files import SUFFIXES, stem
from syncnorm.trainer.errors import MissingDataError

_CHANNEL = re.compile(r"_\d{4}$")


@dataclass(frozen=True)
class Record:
    """One volume. images: a file for all channels, or one for each of them, in order. Paths below the root."""

    images: tuple[str, ...]
    mask: str


def find_records(storage: Storage, args: NiftiArgs, seed: int) -> tuple[list[Record], list[Record]]:
    """(training, validation). Without a list that says which, the seed draws those that are held out.

    Raises: ValueError or MissingDataError naming the files that do not belong together.
    """
    if args.datalist is None:
        found, val = _in_folders(storage, args), None
    else:
        found, val = _in_list(storage, args.datalist)
    if val is not None:
        tell_overlap(f"data.init_args.datalist: {args.datalist}", _images(found), _images(val))
        return found, val
    if len(found) < 2:
        raise MissingDataError(
            f"{storage.where}: {storage.url} must hold two or more volumes, one of them for validation; got "
            f"{len(found)}."
        )
    order = np.random.default_rng(seed).permutation(len(found))
    count = min(max(1, round(len(found) * args.val_fraction)), len(found) - 1)
    return [found[index] for index in sorted(order[count:])], [found[index] for index in sorted(order[:count])]


def _images(records: Sequence[Record]) -> list[str]:
    return [image for record in records for image in record.images]


def _in_folders(storage: Storage, args: NiftiArgs) -> list[Record]:
    files = [name for name in storage.files(frozenset({".nii", ".gz"})) if name.endswith(SUFFIXES)]
    images, masks = _below(files, args.images), _below(files, args.masks)
    volumes: dict[str, list[str]] = {}
    for name in sorted(images):
        volume = name if name in masks else _CHANNEL.sub("", name)
        volumes.setdefault(volume, []).append(images[name])
    for what, folder, lonely in (
        ("a mask", args.masks, volumes.keys() - masks.keys()),
        ("an image", args.images, masks.keys() - volumes.keys()),
    ):
        if lonely:
            raise MissingDataError(
                f"{storage.where}: {storage.url}/{folder} must have {what} for every volume; there is none for "
                f"{name_some(sorted(lonely))}."
            )
    if not volumes:
        raise MissingDataError(
            f"{storage.where}: {storage.url}/{args.images} holds no file that ends in .nii or .nii.gz."
        )
    return [Record(tuple(volumes[name]), masks[name]) for name in sorted(volumes)]


def _below(files: Sequence[str], folder: str) -> dict[str, str]:
    """{path below `folder` without suffix: path}."""
    paths = {name: PurePosixPath(name) for name in files}
    return {stem(str(path.relative_to(folder))): name for name, path in paths.items() if path.is_relative_to(folder)}


def _in_list(storage: Storage, name: str) -> tuple[list[Record], list[Record] | None]:
    where = f"data.init_args.datalist: {name}"
    try:
        content = json.loads(storage.read(name))
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{where} must be JSON, but it can't be read: {error}.") from error
    if not isinstance(content, Mapping) or not content.get("training"):
        raise ValueError(f"{where} must be an object with a list of volumes under `training`.")
    training = _entries(where, content, "training")
    return training, _entries(where, content, "validation") if content.get("validation") else None


def _entries(where: str, content: Mapping[str, Any], part: str) -> list[Record]:
    entries = content[part]
    if not isinstance(entries, list):
        raise ValueError(f"{where}: {part} must be a list of volumes, got {type(entries).__name__}.")
    return [_entry(f"{where}: {part}[{index}]", entry) for index, entry in enumerate(entries)]


def _entry(where: str, entry: Any) -> Record:
    given: Mapping[str, Any] = entry if isinstance(entry, Mapping) else {}
    image, mask = given.get("image"), given.get("label")
    images = [image] if isinstance(image, str) else image
    if not isinstance(images, list) or not images or not all(isinstance(one, str) for one in [*images, mask]):
        raise ValueError(f'{where} must be {{"image": file or list of files, "label": file}}, got {entry!r:.200}.')
    return Record(tuple(_path(where, one) for one in images), _path(where, str(mask)))


def _path(where: str, name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not name.endswith(SUFFIXES):
        raise ValueError(f"{where}: a file must be a path below root that ends in .nii or .nii.gz, got {name!r}.")
    return str(path)
