"""A quarter of the digits, where a test needs real images and steps, and not many of either."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.helpers.trainer import ranks
from tests.helpers.trainer.ranks import TrainedModel

TRAINING = 287
"""Samples for training: 6 batches of 52, the last one smaller."""
BATCH = 52
VALIDATION = 73


@contextmanager
def few_digits() -> Iterator[None]:
    """Data `digits` has 360 images meanwhile, in this process."""
    digits = importlib.import_module("syncnorm.trainer.data.digits")  # the package has a function of that name
    images, labels = digits.load_digits()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digits, "load_digits", lambda: (images[: TRAINING + VALIDATION], labels[: TRAINING + VALIDATION]))
        yield


def train(*arguments: Any, **named: Any) -> TrainedModel:
    """As `ranks.train`."""
    with few_digits():
        return ranks.train(*arguments, **named)
