"""The facts about a data set: its task, shapes and samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from syncnorm.trainer.contract.catalog.volume_args import VolumeArgs
from syncnorm.trainer.contract.text import counted

Sample = tuple[Tensor, Any]
Task = Literal["classification", "segmentation", "regression", "multilabel", "detection"]


class Category(NamedTuple):
    """A class of objects, with the number and the name that the data gives it."""

    id: int
    name: str


class Ragged(list[Any]):
    """One entry for each sample of a batch, where samples differ in size and can't be stacked."""


class ReceptiveField(NamedTuple):
    """How far a network looks to either side of a position, and its total stride, in positions along each axis."""

    reach: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class Windows:
    """How volumes of any size are run: by windows of the shape of a training sample, as data.init_args says.

    field: of the network, once it is known; joint windows and an overlap of `auto` need it.
    """

    overlap: float | Literal["auto"]
    blending: Literal["gaussian", "constant"]
    at_once: int
    is_joint: bool = False
    field: ReceptiveField | None = None

    @classmethod
    def of(cls, form: VolumeArgs) -> Windows:
        return cls(form.overlap, form.blending, form.windows_at_once, form.windows == "joint")

    @property
    def needs_field(self) -> bool:
        return self.is_joint or self.overlap == "auto"


@dataclass(frozen=True)
class DataInfo:
    """What a model must know about the data. shape: one sample's, (C, *spatial), e.g. (C, H, W) or (C, D, H, W).
    num_classes: of regression the numbers to predict, of multilabel the labels; as many outputs as the network has.
    windows: of data whose training samples are patches, and whose validation samples are whole volumes.

    Of detection, shape is that of one of the images, which may differ in size, and num_classes counts the classes of
    objects, without a background. categories: theirs, in the order of the labels 1, 2, and so on.
    """

    task: Task
    num_classes: int
    shape: tuple[int, ...]
    windows: Windows | None = None
    categories: tuple[Category, ...] = ()

    @property
    def is_vector(self) -> bool:
        """Whether a target is a vector of numbers or labels."""
        return self.task in ("regression", "multilabel")

    @property
    def outputs(self) -> str:
        """What the network must give, in words: `10 classes`."""
        if self.task == "regression":
            return counted(self.num_classes, "number")
        return f"{self.num_classes} {'labels' if self.task == 'multilabel' else 'classes'}"


class Source(Dataset[Sample], ABC):
    """Samples by index: float32 of `DataInfo.shape`, and an int64 label, an int64 mask of the spatial shape, or float32
    numbers or labels, (num_classes,). Of detection: see data/coco."""

    augments: bool = False
    """Whether `read` with a generator gives a randomly changed sample."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, index: int, rng: np.random.Generator | None) -> Sample:
        """Sample `index`; changed at random where `rng` is given and this source augments."""

    def __getitem__(self, index: int) -> Sample:
        return self.read(index, None)


@dataclass(frozen=True)
class Data:
    """Training and validation samples.

    train and val have __len__ and __getitem__. collate: makes a batch of a list of samples; None: torch's default.
    num_workers: processes that read samples, for each training process. shuffle: whether training takes them in random
    order. batch_size: samples per batch of the user's own training loader, if it has one. val_batch_size: samples per
    worker and validation batch, where they can't be as many as in training. held_out: samples of the shape of a
    training sample to compare an export on; None: those of val. groups: of each training sample, those that make good
    batches with each other; None: any do.
    """

    info: DataInfo
    train: Dataset[Any]
    val: Dataset[Any]
    collate: Callable[[Sequence[Any]], Any] | None = None
    num_workers: int = 0
    shuffle: bool = True
    batch_size: int | None = None
    val_batch_size: int | None = None
    held_out: Dataset[Any] | None = None
    groups: Sequence[int] | None = None

    def samples_per_worker(self, asked: int | None) -> int:
        """Of each batch: those of data.batch_size, or else of the user's loader. Raises: ValueError with neither."""
        found = asked or self.batch_size
        if found is None:
            raise ValueError("data.batch_size must be given, because the training loader has batch_size=None.")
        return found
