from __future__ import annotations

import os

import pytest
import torch

from syncnorm.norm.native import extension
from tests.helpers.norm.pool import Pool


@pytest.fixture(scope="session", autouse=True)
def compiled_nodes() -> None:
    """The nodes in C++ are there from the first test on, in this process and in workers. SYNCNORM_NODE=0: without."""
    if extension.is_possible() and os.environ.get("SYNCNORM_NODE") != "0":
        extension.compile_now()
        extension.node.cache_clear()  # an earlier test in this process may have looked for them too soon


@pytest.fixture(scope="session")
def pool(ranks: Pool) -> Pool:
    return ranks


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)
