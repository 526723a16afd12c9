"""A user's LightningDataModule, and the samples behind it for a built-in task."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    default_collate,
)

from syncnorm.trainer.data.info import Data, DataInfo
from syncnorm.trainer.data.user.task_of_data import info_of
from syncnorm.trainer.user_code.class_path import instantiate


def own_datamodule(class_path: str, init_args: Mapping[str, Any]) -> LightningDataModule:
    """The LightningDataModule that `class_path` makes of `init_args`. Raises: ValueError naming the spec path."""
    module = instantiate("data", class_path, init_args, fill={})
    if not isinstance(module, LightningDataModule):
        raise ValueError(
            f"data.class_path must give a LightningDataModule, but {class_path} gave a {type(module).__name__}."
        )
    return module


def by_class_path(class_path: str, init_args: Mapping[str, Any]) -> Data:
    """The data sets behind a LightningDataModule's loaders, for a plain network and a built-in task.

    Its dataset, collate_fn, num_workers and whether it shuffles are kept. The trainer distributes the samples:
    data.batch_size per worker, or else the loader's own, in an order that can be resumed (Lightning too replaces the
    sampler on several workers). Samples must be (tensor, target) pairs, from the first of which `info_of` tells the
    task. Labels and masks need the number of classes: an attribute `num_classes` of the data module, or `classes` of
    its training set.

    Raises: ValueError naming the spec path.
    """
    module = own_datamodule(class_path, init_args)
    with FileLock(_lock_file(class_path)):  # one process per host at a time, because it may download
        module.prepare_data()
    module.setup("fit")
    train = _map_style(class_path, "train_dataloader", module.train_dataloader())
    val = _map_style(class_path, "val_dataloader", module.val_dataloader())
    collate: Callable[[Any], Any] | None = train.collate_fn
    return Data(
        _info(class_path, module, train.dataset),
        train.dataset,
        val.dataset,
        collate=None if collate is default_collate else collate,
        num_workers=train.num_workers,
        shuffle=not isinstance(train.sampler, SequentialSampler),
        batch_size=train.batch_size,
    )


def _map_style(class_path: str, what: str, loader: object) -> DataLoader[Any]:
    if not isinstance(loader, DataLoader):
        raise ValueError(
            f"data.class_path: {class_path}.{what}() must give one DataLoader, got {type(loader).__name__}."
        )
    if isinstance(loader.dataset, IterableDataset):
        raise ValueError(
            f"data.class_path: {class_path}.{what}() must have a map-style dataset, with __len__ and __getitem__; "
            "an IterableDataset is for a LightningModule, which brings its own loss."
        )
    if type(loader.sampler) not in (RandomSampler, SequentialSampler, DistributedSampler):
        raise ValueError(
            f"data.class_path: {class_path}.{what}() must leave sampling to the trainer, "
            f"got a {type(loader.sampler).__name__}. Use shuffle=True or False."
        )
    return loader


def _info(class_path: str, module: LightningDataModule, train: Dataset[Any]) -> DataInfo:
    sample = train[0]
    if not (isinstance(sample, tuple | list) and len(sample) == 2 and isinstance(sample[0], Tensor)):
        raise ValueError(
            f"data.class_path: {class_path}'s samples must be (tensor, target) pairs, got {_describe(sample)}. "
            "Convert images in a transform, e.g. to float32 (C, H, W)."
        )
    x, target = sample[0], torch.as_tensor(sample[1])
    classes = getattr(module, "num_classes", None) or len(getattr(train, "classes", ()))
    facts = info_of(x, target, int(classes) or None, getattr(module, "task", None))
    if isinstance(facts, str):
        raise ValueError(f"data.class_path: {class_path} {facts}")
    return facts


def _describe(sample: object) -> str:
    if isinstance(sample, tuple | list):
        return f"{type(sample).__name__} of {', '.join(type(item).__name__ for item in sample)}"
    return type(sample).__name__


def _lock_file(class_path: str) -> Path:
    name = sha256(f"{os.getuid()}:{class_path}".encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"syncnorm-prepare-{name}.lock"
