"""Holding out validation samples: deterministically, or as the user says."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import numpy as np

from syncnorm.trainer.contract.text import counted, name_some

logger = logging.getLogger(__name__)


def stratified_split(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices (train, val), each sorted: of every class the same fraction, to the nearest sample, goes to `val`.

    A class of two or more samples is in both; of a class with one sample, that sample is for training.
    """
    rng = np.random.default_rng(seed)
    held_out: list[int] = []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        count = min(max(round(len(members) * fraction), 1), len(members) - 1)
        held_out += members[:count].tolist()
    val = np.sort(np.array(held_out, dtype=np.int64))
    return np.setdiff1d(np.arange(len(labels)), val), val


def tell_overlap(where: str, training: Iterable[str], validation: Iterable[str]) -> None:
    """Log which files are in both parts: allowed, as a first try on a single volume does it, but easily overlooked.

    where: what of the spec says so.
    """
    if common := sorted(set(training) & set(validation)):
        logger.warning(
            "%s puts %s into training and into validation: %s. So the validation does not say how well the model does "
            "on data that it has never seen.",
            where,
            counted(len(common), "file"),
            name_some(common),
        )
