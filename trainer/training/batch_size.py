"""How many samples a batch has."""

from __future__ import annotations

import warnings
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.data import extract_batch_size

from syncnorm.trainer.data.loader import Batch


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
