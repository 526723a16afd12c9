"""The API over fakes, for tests of its routes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from tests.helpers.service.api import api
from tests.helpers.service.world import World


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[TestClient, World]]:
    with api(tmp_path) as pair:
        yield pair


@pytest.fixture
def http(running: tuple[TestClient, World]) -> TestClient:
    return running[0]
