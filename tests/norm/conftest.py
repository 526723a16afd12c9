from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from pool import Pool


@pytest.fixture(scope="session")
def pool() -> Iterator[Pool]:
    """Four gloo workers for the whole session."""
    workers = Pool()
    yield workers
    workers.stop()


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)
