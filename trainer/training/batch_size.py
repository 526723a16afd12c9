"""How many samples a batch has."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.data import extract_batch_size

from syncnorm.trainer.data.loader import Batch
from syncnorm.trainer.user_code.class_path import find

Count = Callable[[Any], int]
"""A function of the user: the samples of a batch."""


def count_of(class_path: str | None) -> Count | None:
    """The function that data.count names. What it raises is passed on as it is.

    Raises: ValueError naming data.count if there is none, or if it gives no number of samples.
    """
    if class_path is None:
        return None
    function = find("data", class_path, "count")

    def count(batch: Any) -> int:
        found = function(batch)
        if isinstance(found, bool) or not isinstance(found, int) or found < 0:
            raise ValueError(
                f"data.count must return the number of samples of a batch, but {class_path} returned {found!r}. "
                "Return an int."
            )
        return found

    return count


@dataclass(frozen=True)
class Part:
    """One of the micro-batches that a training step takes together."""

    number: int
    samples: int


CURRENT_PART: ContextVar[Part | None] = ContextVar("part", default=None)
"""The one whose training_step runs; None: the step has a batch to itself."""


class LoggedBatchSize:
    """Notes the `batch_size` that a module passes to self.log in a training step, added up over micro-batches."""

    def __init__(self, trainer: Trainer) -> None:
        self._of_parts: dict[int, int] = {}
        results = trainer.fit_loop.epoch_loop._results
        extract = results._extract_batch_size

        def noting(value: Any, batch_size: int | None, meta: Any) -> int:
            if batch_size is not None and meta.fx == "training_step":
                part = CURRENT_PART.get()
                self._of_parts[part.number if part else 0] = int(batch_size)
            return extract(value, batch_size, meta)

        results._extract_batch_size = noting  # type: ignore[method-assign]

    @property
    def latest(self) -> int | None:
        return sum(self._of_parts.values()) if self._of_parts else None

    def reset(self) -> None:
        self._of_parts.clear()


def samples_in(batch: Any, whole: int | None = None, *, is_last: bool = False) -> int:
    """Samples of a worker's batch: what its loader puts into each, else the length of the first tensor in it.

    whole: samples of a whole batch; None: unknown. is_last: of an epoch, which may have fewer. The length is
    Lightning's rule; 1 where there is no tensor.
    """
    if isinstance(batch, Batch):
        return len(batch.y)
    if whole is not None and not is_last:
        return whole
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where tensors differ in length, the first one counts
        try:
            found = int(extract_batch_size(batch))
        except MisconfigurationException:
            found = 1
    return found if whole is None else min(found, whole)
