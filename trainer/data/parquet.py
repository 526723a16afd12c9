"""Parquet files with encoded images, and labels or columns of targets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import torch

from syncnorm.trainer.contract.catalog.parquet_args import ParquetArgs
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
    """A file, or a folder of files, on disk or under a URL. Labels are integers from 0, or names (in sorted order);
    targets are numbers, of multilabel 0 or 1."""
    reader = ImageReader(args.size, args.channels)
    storage, table = _table("data.init_args.path", args.path, args)
    others = None if args.val_path is None else _table("data.init_args.val_path", args.val_path, args)
    classes = _classes(storage, table[args.label_column].to_pylist()) if args.task == "classification" else []
    targets = _targets(storage, table, args, classes)
    if others is None:
        train, held_out = stratified_split(targets if classes else np.zeros(len(targets)), args.val_fraction, seed)
        val = EncodedImages(storage, table[args.image_column], targets, held_out, reader, augments=False)
    else:
        train, (where, held) = np.arange(len(targets)), others
        val_targets = _targets(where, held, args, classes)
        rows = np.arange(len(val_targets))
        val = EncodedImages(where, held[args.image_column], val_targets, rows, reader, augments=False)
    return Data(
        DataInfo(args.task, len(classes or args.target_columns), reader.shape),
        EncodedImages(storage, table[args.image_column], targets, train, reader, augments=args.augment),
        val,
    )


def _table(where: str, url: str, args: ParquetArgs) -> tuple[Storage, pa.Table]:
    from pyarrow.dataset import dataset  # it imports pandas, which is slow

    storage = open_storage(where, url)
    if not storage.filesystem.exists(storage.path):
        raise MissingDataError(f"{where}: there is no {url}. Every worker must be able to read it.")
    columns = [args.image_column, *(args.target_columns or [args.label_column])]
    try:
        found = dataset(storage.path, filesystem=storage.filesystem, format="parquet")
        if missing := set(columns) - set(found.schema.names):
            fields = "image_column or " + ("target_columns" if args.target_columns else "label_column")
            raise ValueError(
                f"{where}: {url} must have the columns {' and '.join(columns)}, has no "
                f"{' and no '.join(sorted(missing))}. It has {', '.join(found.schema.names)}; "
                f"set {fields}."
            )
        table = found.to_table(columns=columns)
    except pa.ArrowException as error:
        raise ValueError(f"{where}: {url} can't be read as Parquet: {error}") from error
    if not len(table):
        raise MissingDataError(f"{where}: {url} holds no rows.")
    return storage, table


def _targets(storage: Storage, table: pa.Table, args: ParquetArgs, classes: list[Any]) -> np.ndarray:
    """(rows,) int64 labels, or (rows, targets) float32."""
    if args.task == "classification":
        return _labels(storage, table[args.label_column].to_pylist(), classes)
    return np.stack([_numbers(storage, table, name, args.task) for name in args.target_columns], axis=1)


def _numbers(storage: Storage, table: pa.Table, name: str, task: str) -> np.ndarray:
    kind = table.schema.field(name).type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
        raise ValueError(f"{storage.where}: column {name} of {storage.url} must hold numbers for {task}, got {kind}.")
    values = np.array(table[name].to_pylist(), dtype=np.float32)  # null becomes NaN
    is_wrong = ~np.isfinite(values) if task == "regression" else (values != 0) & (values != 1)
    if is_wrong.any():
        row, wanted = int(np.flatnonzero(is_wrong)[0]), "finite numbers" if task == "regression" else "0 or 1"
        raise ValueError(
            f"{storage.where}: column {name} of {storage.url} must hold {wanted} for {task}, got {values[row]} in row "
            f"{row}. Correct or leave out such rows."
        )
    return values


def _classes(storage: Storage, names: list[Any]) -> list[Any]:
    """All classes in the order of their numbers."""
    kinds = {type(name) for name in names}
    if kinds == {int} and min(names) >= 0:
        return list(range(max(names) + 1))
    if kinds == {str}:
        return sorted(set(names))
    raise ValueError(
        f"{storage.where}: labels of {storage.url} must all be integers from 0 on, or all names; "
        f"got {', '.join(sorted(kind.__name__ for kind in kinds))}, the least {min(map(str, names))}. "
        "To predict numbers, set task: regression and name their columns in target_columns."
    )


def _labels(storage: Storage, names: list[Any], classes: list[Any]) -> np.ndarray:
    number = {name: index for index, name in enumerate(classes)}
    if unknown := sorted({str(name) for name in names if name not in number}):
        raise ValueError(f"{storage.where}: {storage.url} has labels that training has not: {', '.join(unknown[:5])}.")
    return np.array([number[name] for name in names], dtype=np.int64)
