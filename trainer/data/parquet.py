"""Classification from Parquet files with encoded images and labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import torch

from syncnorm.trainer.contract.catalog import ParquetArgs
from syncnorm.trainer.data.images import ImageReader, decode
from syncnorm.trainer.data.info import Data, DataInfo, Sample, Source
from syncnorm.trainer.data.remote_files import Storage, open_storage
from syncnorm.trainer.data.split import stratified_split
from syncnorm.trainer.errors import MissingDataError


class EncodedImages(Source):
    """Rows of a table. The encoded bytes stay in memory, in each training process; images are decoded when read."""

    def __init__(
        self,
        storage: Storage,
        images: pa.ChunkedArray,
        labels: np.ndarray,
        rows: np.ndarray,
        reader: ImageReader,
        *,
        augments: bool,
    ) -> None:
        self._storage, self._images, self._labels, self._rows, self._reader = storage, images, labels, rows, reader
        self.augments = augments

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, index: int, rng: np.random.Generator | None) -> Sample:
        row = int(self._rows[index])
        content = self._images[row].as_py()
        content = content["bytes"] if isinstance(content, dict) else content
        image = decode(self._storage.where, f"row {row} of {self._storage.url}", content or b"")
        return self._reader.classify(image, rng), torch.tensor(self._labels[row])


def parquet(args: ParquetArgs, seed: int) -> Data:
    """A file, or a folder of files, on disk or under a URL. Labels are integers from 0, or names (in sorted order)."""
    reader = ImageReader(args.size, args.channels)
    storage, images, names = _columns("data.init_args.path", args.path, args)
    others = None if args.val_path is None else _columns("data.init_args.val_path", args.val_path, args)
    classes = _classes(storage, names)
    labels = _labels(storage, names, classes)
    if others is None:
        train, held_out = stratified_split(labels, args.val_fraction, seed)
        val = EncodedImages(storage, images, labels, held_out, reader, augments=False)
    else:
        train = np.arange(len(labels))
        val_labels = _labels(others[0], others[2], classes)
        val = EncodedImages(others[0], others[1], val_labels, np.arange(len(val_labels)), reader, augments=False)
    return Data(
        DataInfo("classification", len(classes), reader.shape),
        EncodedImages(storage, images, labels, train, reader, augments=args.augment),
        val,
    )


def _columns(where: str, url: str, args: ParquetArgs) -> tuple[Storage, pa.ChunkedArray, list[Any]]:
    from pyarrow.dataset import dataset  # it imports pandas, which is slow

    storage = open_storage(where, url)
    if not storage.filesystem.exists(storage.path):
        raise MissingDataError(f"{where}: there is no {url}. Every worker must be able to read it.")
    try:
        found = dataset(storage.path, filesystem=storage.filesystem, format="parquet")
        if missing := {args.image_column, args.label_column} - set(found.schema.names):
            raise ValueError(
                f"{where}: {url} must have the columns {args.image_column} and {args.label_column}, has no "
                f"{' and no '.join(sorted(missing))}. It has {', '.join(found.schema.names)}; "
                "set image_column or label_column."
            )
        table = found.to_table(columns=[args.image_column, args.label_column])
    except pa.ArrowException as error:
        raise ValueError(f"{where}: {url} can't be read as Parquet: {error}") from error
    if not len(table):
        raise MissingDataError(f"{where}: {url} holds no rows.")
    return storage, table[args.image_column], table[args.label_column].to_pylist()


def _classes(storage: Storage, names: list[Any]) -> list[Any]:
    """All classes in the order of their numbers."""
    kinds = {type(name) for name in names}
    if kinds == {int} and min(names) >= 0:
        return list(range(max(names) + 1))
    if kinds == {str}:
        return sorted(set(names))
    raise ValueError(
        f"{storage.where}: labels of {storage.url} must all be integers from 0 on, or all names; "
        f"got {', '.join(sorted(kind.__name__ for kind in kinds))}, the least {min(map(str, names))}."
    )


def _labels(storage: Storage, names: list[Any], classes: list[Any]) -> np.ndarray:
    number = {name: index for index, name in enumerate(classes)}
    if unknown := sorted({str(name) for name in names if name not in number}):
        raise ValueError(f"{storage.where}: {storage.url} has labels that training has not: {', '.join(unknown[:5])}.")
    return np.array([number[name] for name in names], dtype=np.int64)
