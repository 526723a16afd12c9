from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.helpers.service.databases import fresh_sqlite
from tests.helpers.service.world import World

os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A service over a stand-in for the cluster."""
    with fresh_sqlite(tmp_path) as database:
        yield World(tmp_path, database)
