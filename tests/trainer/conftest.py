from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.norm.pool import Pool

os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")


@pytest.fixture(scope="session")
def ranks() -> Iterator[Pool]:
    """Two gloo workers for the whole session; the first job in one imports Lightning, which takes its time."""
    workers = Pool(size=2, timeout_s=240)
    yield workers
    workers.stop()
