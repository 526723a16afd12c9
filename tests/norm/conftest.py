from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.helpers.norm.pool import Pool


@pytest.fixture(scope="session")
def pool() -> Iterator[Pool]:
    """Four gloo workers for the whole session."""
    workers = Pool()
    yield workers
    workers.stop()


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)
